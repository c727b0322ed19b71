# SETR on the small ViT of this repository, digits: VPT-add-1.
_base_ = ['./setr_digits.py', '../_base_/methods/add-1.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
