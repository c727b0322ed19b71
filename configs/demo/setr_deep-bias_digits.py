# SETR on the small ViT of this repository, digits: VPT-deep and biases.
_base_ = ['./setr_digits.py', '../_base_/methods/deep-bias.py']
_prompt = dict(_base_.method.prompt, num_tokens=20, dropout=0.0)
model = dict(backbone=dict(_base_.method, prompt=_prompt))
optim_wrapper = _base_.optim[_base_.optim_group]
