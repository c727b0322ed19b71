# Linear head, DINOv3 ViT-S/16, ADE20K in crops of 512x512.
# The protocol is that of its authors; the head normalises the tokens, as their last norm does.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov3_vit-s.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/40k_cosine.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/linear_dinov3.py',
]
model = dict(backbone=dict(norm_outputs=False), decode_head=dict(dropout_ratio=0.1))
