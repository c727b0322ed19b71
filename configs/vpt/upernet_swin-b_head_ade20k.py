# UperNet, Swin-B, ADE20K: heads only.
_base_ = [
    '../_base_/models/upernet_swin-b.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/160k_warmup.py',
    '../_base_/default_runtime.py',
    '../_base_/tuning/head.py',
]
# And the norms of the outputs, which no pretrained weights hold.
model = dict(
    backbone=dict(_base_.tuning, trainable=[*_base_.tuning.trainable, r'^norm\d\.'])
)
