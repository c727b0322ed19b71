# ViT-B/16, a fine-grained set: VPT-deep.
_base_ = ['./vit-b_fgvc.py', '../_base_/methods/deep.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
