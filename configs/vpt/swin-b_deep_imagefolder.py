# Swin-B, a folder of images: VPT-deep.
_base_ = ['./swin-b_imagefolder.py', '../_base_/methods/deep.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
