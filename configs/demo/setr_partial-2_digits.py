# SETR on the small ViT of this repository, digits: partial-2.
_base_ = ['./setr_digits.py', '../_base_/methods/partial-2.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
