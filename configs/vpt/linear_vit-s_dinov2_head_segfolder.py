# Linear head, DINOv2 ViT-S/14, a folder of images and masks in crops of 518x518: head-only.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/segfolder_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/tuning/head.py',
]
model = dict(backbone=_base_.tuning)
img_size = 518
# DINOv2's optimizer for linear heads, that of tuning/lora.py too.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, weight_decay=0.0001),
)
