# Depth: DPT, DINOv2 ViT-S/14, a folder of images and depth maps in crops of 518x518.
_base_ = [
    '../_base_/models/dpt-depth_vit-b.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/depthfolder.py',
    '../_base_/schedules/depth_38k.py',
    '../_base_/default_runtime_maps.py',
    '../_base_/optim/depth.py',
]
img_size = 518
