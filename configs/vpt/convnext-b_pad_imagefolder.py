# ConvNeXt-B, a folder of images: a learnt border.
_base_ = ['./convnext-b_imagefolder.py', '../_base_/methods/pad_cls.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
