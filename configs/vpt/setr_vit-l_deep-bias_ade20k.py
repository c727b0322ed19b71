# SETR-PUP, ViT-L/16, ADE20K: VPT-deep and biases.
_base_ = ['./setr_vit-l_ade20k.py', '../_base_/methods/deep-bias.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
