# DINOv2 ViT-B/14, 45 kinds of scenes from the air by torchgeo, images of 224x224.
_base_ = [
    '../_base_/models/vit-b_cls.py',
    '../_base_/backbones/dinov2_vit-b.py',
    '../_base_/datasets/resisc45.py',
    '../_base_/schedules/cls_100e.py',
    '../_base_/default_runtime_cls.py',
    '../_base_/optim/classification.py',
]
model = dict(data_preprocessor=dict(mean=None, std=None, to_rgb=False))
