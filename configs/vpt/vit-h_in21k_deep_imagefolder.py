# ViT-H/14, IN-21k, a folder of images: VPT-deep.
_base_ = ['./vit-h_in21k_imagefolder.py', '../_base_/methods/deep.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
