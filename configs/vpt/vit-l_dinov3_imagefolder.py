# DINOv3 ViT-L/16, a folder of images.
_base_ = [
    '../_base_/models/vit-b_cls.py',
    '../_base_/backbones/dinov3_vit-l.py',
    '../_base_/datasets/imagefolder.py',
    '../_base_/schedules/cls_100e.py',
    '../_base_/default_runtime_cls.py',
    '../_base_/optim/classification.py',
]
