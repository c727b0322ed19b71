# SETR on the small ViT of this repository, digits: RepAdapter.
_base_ = ['./setr_digits.py', '../_base_/methods/rep-adapter.py']
_adapter = dict(_base_.method.adapters[0], dropout=0.0)
model = dict(backbone=dict(_base_.method, adapters=[_adapter]))
optim_wrapper = _base_.optim[_base_.optim_group]
