# SETR-PUP, ViT-L/16, a folder of images and masks: VPT-deep.
_base_ = ['./setr_vit-l_segfolder.py', '../_base_/methods/deep.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
