# Linear head, DINOv2 ViT-B/14, burn scars in six bands: B, G and R get their weights, the others
# their mean (docs/fields.md has the other ways).
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov2_vit-b.py',
    '../_base_/datasets/burn-scars_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
img_size = 518
model = dict(
    data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False),
    backbone=dict(in_channels=6, init_cfg=dict(bands=['B', 'G', 'R', 'mean', 'mean', 'mean'])),
)
