# ViT-Split, DINOv2 ViT-S/14, ADE20K: 3 blocks copied, 4 maps. The authors publish 51.6 mIoU, with
# crops of 512 in batches of 16, 40,000 iterations and 3e-4.
_base_ = ['./deconv_vit-s_dinov2_ade20k.py', '../_base_/methods/vit-split.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
