# UperNet with a feature pyramid, ViT-L/16, ADE20K: full fine-tuning.
_base_ = [
    '../_base_/models/upernet_vit-l.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/160k.py',
    '../_base_/default_runtime.py',
    '../_base_/tuning/full.py',
]
model = dict(backbone=_base_.tuning)
# The pyramid starts at random, as the heads do.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'neck': dict(lr_mult=10.0)}))
