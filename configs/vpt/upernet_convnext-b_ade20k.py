# UperNet, ConvNeXt-B, ADE20K.
_base_ = [
    '../_base_/models/upernet_convnext-b.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/160k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/segmentation.py',
]
# The norms of the outputs, of which the pretrained weights hold the last alone.
also_trainable = [r'^norm\d\.']
