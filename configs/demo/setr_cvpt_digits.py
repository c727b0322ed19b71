# SETR on the small ViT of this repository, digits: CVPT.
_base_ = ['./setr_digits.py', '../_base_/methods/cvpt.py']
_adapter = dict(_base_.method.adapters[0], num_tokens=20, dropout=0.0)
model = dict(backbone=dict(_base_.method, adapters=[_adapter]))
optim_wrapper = _base_.optim[_base_.optim_group]
