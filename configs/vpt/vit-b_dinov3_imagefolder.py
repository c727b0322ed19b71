# DINOv3 ViT-B/16, a folder of images.
_base_ = [
    '../_base_/models/vit-b_cls.py',
    '../_base_/backbones/dinov3_vit-b.py',
    '../_base_/datasets/imagefolder.py',
    '../_base_/schedules/cls_100e.py',
    '../_base_/default_runtime_cls.py',
    '../_base_/optim/classification.py',
]
