# ViT-Split, DINOv2 ViT-S/14, a folder of images and masks: 3 blocks copied, 4 maps.
_base_ = ['./deconv_vit-s_dinov2_segfolder.py', '../_base_/methods/vit-split.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
