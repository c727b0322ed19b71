# UperNet, ConvNeXt-B, ADE20K: biases and heads.
_base_ = [
    '../_base_/models/upernet_convnext-b.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/160k.py',
    '../_base_/default_runtime.py',
    '../_base_/tuning/bias.py',
]
# And the norms of the outputs, of which the pretrained weights hold the last alone.
model = dict(
    backbone=dict(_base_.tuning, trainable=[*_base_.tuning.trainable, r'^norm\d\.'])
)
