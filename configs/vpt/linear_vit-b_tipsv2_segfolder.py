# Linear head, TIPSv2 ViT-B/14, a folder of images and masks in crops of 518x518.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/tipsv2_vit-b.py',
    '../_base_/datasets/segfolder_512.py',
    '../_base_/schedules/40k_cosine.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/linear_dinov3.py',
]
model = dict(backbone=dict(norm_outputs=False), decode_head=dict(dropout_ratio=0.1))
img_size = 518
