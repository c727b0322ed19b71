# Linear head, DINOv3 ViT-B/16, ADE20K in crops of 512x512: head-only.
_base_ = ['./linear_vit-b_dinov3_ade20k.py', '../_base_/methods/head.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
