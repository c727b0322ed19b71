# SETR on the small ViT of this repository, digits: a learnt border.
_base_ = ['./_setr_digits.py', '../_base_/tuning/pad.py']
_prompt = dict(_base_.tuning.image_prompt, width=8)
model = dict(backbone=dict(_base_.tuning, image_prompt=_prompt))
optim_wrapper = _base_.demo_optim.prompts
