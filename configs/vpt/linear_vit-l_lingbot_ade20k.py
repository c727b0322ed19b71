# Linear head, LingBot-Vision ViT-L/16, ADE20K in crops of 512x512.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/lingbot_vit-l.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/40k_cosine.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/linear_dinov3.py',
]
model = dict(backbone=dict(norm_outputs=False), decode_head=dict(dropout_ratio=0.1))
