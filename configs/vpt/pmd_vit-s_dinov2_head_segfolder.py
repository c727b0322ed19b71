# PMT's decoder on a frozen DINOv2 ViT-S/14, a folder of images and masks.
_base_ = ['./pmd_vit-s_dinov2_segfolder.py', '../_base_/methods/head.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
