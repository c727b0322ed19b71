# UperNet, ConvNeXt-B, ADE20K: biases and heads.
_base_ = ['./upernet_convnext-b_ade20k.py', '../_base_/methods/bias.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
