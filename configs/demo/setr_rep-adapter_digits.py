# SETR on the small ViT of this repository, digits: RepAdapter.
_base_ = ['./_setr_digits.py', '../_base_/tuning/rep-adapter.py']
_adapter = dict(_base_.tuning.adapters[0], dropout=0.0)
model = dict(backbone=dict(_base_.tuning, adapters=[_adapter]))
optim_wrapper = _base_.demo_optim.adapters
