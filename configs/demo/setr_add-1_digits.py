# SETR on the small ViT of this repository, digits: VPT-add-1.
_base_ = ['./_setr_digits.py', '../_base_/tuning/add-1.py']
model = dict(backbone=_base_.tuning)
optim_wrapper = _base_.demo_optim.prompts
