# SETR on the small ViT of this repository, digits: adapters.
_base_ = ['./setr_digits.py', '../_base_/methods/adapter.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
