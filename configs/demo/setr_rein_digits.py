# SETR on the small ViT of this repository, digits: Rein's token refinement.
_base_ = ['./setr_digits.py', '../_base_/methods/rein.py']
_adapter = dict(_base_.method.adapters[0], num_tokens=20, rank=8)
model = dict(backbone=dict(_base_.method, adapters=[_adapter]))
optim_wrapper = _base_.optim[_base_.optim_group]
