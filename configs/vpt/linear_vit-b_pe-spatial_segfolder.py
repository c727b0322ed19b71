# Linear head, Perception Encoder (spatial) ViT-B/16, a folder of images and masks in crops of
# 512x512.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/pe-spatial_vit-b.py',
    '../_base_/datasets/segfolder_512.py',
    '../_base_/schedules/40k_cosine.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/linear_dinov3.py',
]
model = dict(backbone=dict(norm_outputs=False), decode_head=dict(dropout_ratio=0.1))
