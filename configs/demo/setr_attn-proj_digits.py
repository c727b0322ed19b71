# SETR on the small ViT of this repository, digits: the projections of attention.
_base_ = ['./setr_digits.py', '../_base_/methods/attn-proj.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
