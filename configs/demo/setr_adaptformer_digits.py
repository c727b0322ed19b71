# SETR on the small ViT of this repository, digits: AdaptFormer.
_base_ = ['./setr_digits.py', '../_base_/methods/adaptformer.py']
_adapter = dict(_base_.method.adapters[0], hidden_dims=32, dropout=0.0)
model = dict(backbone=dict(_base_.method, adapters=[_adapter]))
optim_wrapper = _base_.optim[_base_.optim_group]
