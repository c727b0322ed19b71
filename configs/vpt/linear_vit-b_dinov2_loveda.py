# Linear head, DINOv2 ViT-B/14, LoveDA in crops of 518x518; aerial_512.py says how to take others.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov2_vit-b.py',
    '../_base_/datasets/aerial_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
img_size = 518
