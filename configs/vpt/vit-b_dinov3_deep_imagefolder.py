# DINOv3 ViT-B/16, a folder of images: VPT-deep.
_base_ = ['./vit-b_dinov3_imagefolder.py', '../_base_/methods/deep.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
