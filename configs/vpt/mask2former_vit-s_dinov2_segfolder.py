# Mask2Former, simple feature pyramid, DINOv2 ViT-S/14, a folder of images and masks in crops of
# 518x518. Its head is mmdet's, an extra.
_base_ = [
    '../_base_/models/mask2former-semantic_vit-b.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/segfolder_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/detection.py',
]
img_size = 518
