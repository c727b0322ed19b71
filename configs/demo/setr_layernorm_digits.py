# SETR on the small ViT of this repository, digits: the layer norms.
_base_ = ['./setr_digits.py', '../_base_/methods/layernorm.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
