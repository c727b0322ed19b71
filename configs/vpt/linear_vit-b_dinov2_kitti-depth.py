# Depth: linear head, DINOv2 ViT-B/14, KITTI in crops of 700x350, to 80 m.
_base_ = [
    '../_base_/models/linear-depth_vit-l.py',
    '../_base_/backbones/dinov2_vit-b.py',
    '../_base_/datasets/kitti-depth.py',
    '../_base_/schedules/depth_38k.py',
    '../_base_/default_runtime_maps.py',
    '../_base_/optim/depth.py',
]
img_size = (350, 700)
model = dict(depth_head=dict(max_depth=80.0))
