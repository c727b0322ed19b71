# SETR on the small ViT of this repository, digits: residual prompts.
_base_ = ['./setr_digits.py', '../_base_/methods/residual.py']
_prompt = dict(_base_.method.prompt, num_tokens=20, dropout=0.0)
model = dict(backbone=dict(_base_.method, prompt=_prompt))
optim_wrapper = _base_.optim[_base_.optim_group]
