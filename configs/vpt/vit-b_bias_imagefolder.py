# ViT-B/16, a folder of images: bias tuning.
_base_ = ['./vit-b_imagefolder.py', '../_base_/methods/bias.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
