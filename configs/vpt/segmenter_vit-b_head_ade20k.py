# Segmenter, ViT-B/16, ADE20K: head-only.
_base_ = [
    '../_base_/models/segmenter_vit-b.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/160k.py',
    '../_base_/default_runtime.py',
    '../_base_/tuning/head.py',
]
model = dict(backbone=_base_.tuning)
# As in mmseg's Segmenter: one rate for all.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=1.0)}))
