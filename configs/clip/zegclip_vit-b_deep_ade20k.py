# ZegCLIP on CLIP ViT-B/16, ADE20K in crops of 512x512: VPT-deep.
_base_ = ['./zegclip_vit-b_ade20k.py', '../_base_/methods/deep.py']
model = dict(backbone=_base_.method)
optim_wrapper = _base_.optim[_base_.optim_group]
