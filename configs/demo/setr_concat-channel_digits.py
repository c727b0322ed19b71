# SETR on the small ViT of this repository, digits: learnt channels.
_base_ = ['./setr_digits.py', '../_base_/methods/concat-channel.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
