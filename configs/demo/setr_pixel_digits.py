# SETR on the small ViT of this repository, digits: prompts of pixels.
_base_ = ['./setr_digits.py', '../_base_/methods/pixel.py']
_prompt = dict(_base_.method.prompt, num_tokens=20)
model = dict(backbone=dict(_base_.method, prompt=_prompt))
optim_wrapper = _base_.optim[_base_.optim_group]
