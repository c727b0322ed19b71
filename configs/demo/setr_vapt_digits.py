# SETR on the small ViT of this repository, digits: VAPT.
_base_ = ['./setr_digits.py', '../_base_/methods/vapt.py']
_prompt = dict(_base_.method.prompt, num_tokens=20, grid=(12, 12), dropout=0.0)
model = dict(backbone=dict(_base_.method, prompt=_prompt))
optim_wrapper = _base_.optim[_base_.optim_group]
