# SETR on the small ViT of this repository, digits: learnt channels.
_base_ = ['./_setr_digits.py', '../_base_/tuning/concat-channel.py']
model = dict(backbone=_base_.tuning)
optim_wrapper = _base_.demo_optim.patch_embed
