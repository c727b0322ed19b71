# Linear head, DINOv2 ViT-S/14, a folder of images and masks in crops of 518x518: head-only.
_base_ = ['./linear_vit-s_dinov2_segfolder.py', '../_base_/methods/head.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
