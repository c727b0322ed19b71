# SETR on the small ViT of this repository, digits: adapters.
_base_ = ['./_setr_digits.py', '../_base_/tuning/adapter.py']
model = dict(backbone=_base_.tuning)
optim_wrapper = _base_.demo_optim.adapters
