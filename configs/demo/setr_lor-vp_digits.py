# SETR on the small ViT of this repository, digits: LoR-VP.
_base_ = ['./setr_digits.py', '../_base_/methods/lor-vp.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
