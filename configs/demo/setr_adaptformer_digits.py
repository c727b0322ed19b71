# SETR on the small ViT of this repository, digits: AdaptFormer.
_base_ = ['./_setr_digits.py', '../_base_/tuning/adaptformer.py']
_adapter = dict(_base_.tuning.adapters[0], hidden_dims=32, dropout=0.0)
model = dict(backbone=dict(_base_.tuning, adapters=[_adapter]))
optim_wrapper = _base_.demo_optim.adapters
