# SETR on the small ViT of this repository, digits: a learnt border.
_base_ = ['./setr_digits.py', '../_base_/methods/pad.py']
_prompt = dict(_base_.method.image_prompt, width=8)
model = dict(backbone=dict(_base_.method, image_prompt=_prompt))
optim_wrapper = _base_.optim[_base_.optim_group]
