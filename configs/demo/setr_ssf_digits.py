# SETR on the small ViT of this repository, digits: SSF.
_base_ = ['./setr_digits.py', '../_base_/methods/ssf.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
