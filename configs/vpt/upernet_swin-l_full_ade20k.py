# UperNet, Swin-L, ADE20K: full fine-tuning.
_base_ = ['./upernet_swin-l_ade20k.py', '../_base_/methods/full.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
