# SETR on the small ViT of this repository, digits: VPT-add.
_base_ = ['./setr_digits.py', '../_base_/methods/add.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
