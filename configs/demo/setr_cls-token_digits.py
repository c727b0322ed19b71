# SETR on the small ViT of this repository, digits: the cls token alone.
_base_ = ['./setr_digits.py', '../_base_/methods/cls-token.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
