# DINOv2 ViT-B/14, EuroSAT with 13 bands, each with the mean of the weights for R, G, B x 3/13.
_base_ = [
    '../_base_/models/vit-b_cls.py',
    '../_base_/backbones/dinov2_vit-b.py',
    '../_base_/datasets/eurosat-ms.py',
    '../_base_/schedules/cls_100e.py',
    '../_base_/default_runtime_cls.py',
    '../_base_/optim/classification.py',
]
model = dict(
    data_preprocessor=dict(mean=None, std=None, to_rgb=False),
    backbone=dict(in_channels=13, init_cfg=dict(bands='mean')),
)
