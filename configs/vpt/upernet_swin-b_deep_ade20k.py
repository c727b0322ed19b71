# UperNet, Swin-B, ADE20K: VPT-deep.
_base_ = ['./upernet_swin-b_ade20k.py', '../_base_/methods/deep.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
