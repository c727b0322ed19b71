# UperNet, Swin-L, ADE20K.
_base_ = [
    '../_base_/models/upernet_swin-l.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/160k_warmup.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/upernet_swin.py',
]
# The norms of the outputs, which no pretrained weights hold.
also_trainable = [r'^norm\d\.']
