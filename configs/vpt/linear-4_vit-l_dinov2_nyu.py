# Depth: linear head on four blocks, DINOv2 ViT-L/14, NYU Depth v2 in crops of 546x420.
_base_ = [
    '../_base_/models/linear-4-depth_vit-l.py',
    '../_base_/backbones/dinov2_vit-l.py',
    '../_base_/datasets/nyu.py',
    '../_base_/schedules/depth_38k.py',
    '../_base_/default_runtime_maps.py',
    '../_base_/optim/depth.py',
]
img_size = (420, 546)
