# Depth: DPT, DINOv2 ViT-B/14, NYU Depth v2 in crops of 546x420.
_base_ = [
    '../_base_/models/dpt-depth_vit-b.py',
    '../_base_/backbones/dinov2_vit-b.py',
    '../_base_/datasets/nyu.py',
    '../_base_/schedules/depth_38k.py',
    '../_base_/default_runtime_maps.py',
    '../_base_/optim/depth.py',
]
img_size = (420, 546)
