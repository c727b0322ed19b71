# SETR-PUP, DINOv3 ViT-L/16, ADE20K: VPT-deep.
_base_ = ['./setr_vit-l_dinov3_ade20k.py', '../_base_/methods/deep.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
