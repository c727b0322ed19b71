# EoMT with LoRA on a frozen DINOv2 ViT-S/14, a folder of images and masks.
_base_ = ['./eomt_vit-s_dinov2_segfolder.py', '../_base_/methods/lora.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
