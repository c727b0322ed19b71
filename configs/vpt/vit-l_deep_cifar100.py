# ViT-L/16, CIFAR-100: VPT-deep.
_base_ = ['./vit-l_cifar100.py', '../_base_/methods/deep.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
