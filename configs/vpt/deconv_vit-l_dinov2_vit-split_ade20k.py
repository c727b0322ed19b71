# ViT-Split, DINOv2 ViT-L/14, ADE20K: 4 blocks copied, 8 maps. The authors publish 58.2 mIoU, with
# crops of 512 in batches of 16 and 40,000 iterations.
_base_ = ['./deconv_vit-l_dinov2_ade20k.py', '../_base_/methods/vit-split.py']
_adapter = dict(_base_.method.adapters[0], num_blocks=4, num_maps=8)
model = dict(backbone=dict(_base_.method, adapters=[_adapter]))
optim_wrapper = _base_.optim[_base_.optim_group]
