# CLIP ViT-B/16 and the names of the classes, a folder of images: coop.
_base_ = ['./clip_vit-b_imagefolder.py', '../_base_/methods/text/coop.py']
model = dict(backbone=_base_.method, head=_base_.method_head)
optim_wrapper = _base_.optim[_base_.optim_group]
