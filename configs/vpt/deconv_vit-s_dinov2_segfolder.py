# ViT-Split's head, DINOv2 ViT-S/14, a folder of images and masks in crops of 518x518.
_base_ = [
    '../_base_/models/deconv_vit-l.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/segfolder_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/vit-split.py',
]
img_size = 518
