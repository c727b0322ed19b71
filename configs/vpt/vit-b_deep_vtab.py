# ViT-B/16, a task of VTAB-1k: VPT-deep.
_base_ = ['./vit-b_vtab.py', '../_base_/methods/deep.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
