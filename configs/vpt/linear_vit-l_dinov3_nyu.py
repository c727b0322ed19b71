# Depth: linear head, DINOv3 ViT-L/16, NYU Depth v2 in crops of 544x416.
_base_ = [
    '../_base_/models/linear-depth_vit-l.py',
    '../_base_/backbones/dinov3_vit-l.py',
    '../_base_/datasets/nyu.py',
    '../_base_/schedules/depth_38k.py',
    '../_base_/default_runtime_maps.py',
    '../_base_/optim/depth.py',
]
model = dict(backbone=dict(norm_outputs=False))
