# SETR on the small ViT of this repository, digits: side-tuning.
_base_ = ['./_setr_digits.py', '../_base_/tuning/side.py']
model = dict(backbone=_base_.tuning)
optim_wrapper = _base_.demo_optim.blocks
