# SETR on the small ViT of this repository, digits: Rein's token refinement.
_base_ = ['./_setr_digits.py', '../_base_/tuning/rein.py']
_adapter = dict(_base_.tuning.adapters[0], num_tokens=20, rank=8)
model = dict(backbone=dict(_base_.tuning, adapters=[_adapter]))
optim_wrapper = _base_.demo_optim.adapters
