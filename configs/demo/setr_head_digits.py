# SETR on the small ViT of this repository, digits: head-only.
_base_ = ['./setr_digits.py', '../_base_/methods/head.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
