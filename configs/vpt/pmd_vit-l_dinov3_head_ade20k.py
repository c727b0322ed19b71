# PMT's decoder on a frozen DINOv3 ViT-L/16, ADE20K.
_base_ = ['./pmd_vit-l_dinov3_ade20k.py', '../_base_/methods/head.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
