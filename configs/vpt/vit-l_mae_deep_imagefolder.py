# MAE ViT-L/16, a folder of images: VPT-deep.
_base_ = ['./vit-l_mae_imagefolder.py', '../_base_/methods/deep.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
