# UperNet with a feature pyramid, DINOv2 ViT-L/14, ADE20K in crops of 518x518: VPT-deep.
_base_ = ['./upernet_vit-l_dinov2_ade20k.py', '../_base_/methods/deep.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
