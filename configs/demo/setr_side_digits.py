# SETR on the small ViT of this repository, digits: side-tuning.
_base_ = ['./setr_digits.py', '../_base_/methods/side.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
