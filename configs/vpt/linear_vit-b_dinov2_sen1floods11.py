# Linear head, DINOv2 ViT-B/14, floods in 13 bands of Sentinel-2. init_cfg.bands says what becomes
# of weights for R, G, B: every band their mean x 3/13; docs/fields.md has the other ways.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov2_vit-b.py',
    '../_base_/datasets/sen1floods11_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
img_size = 518
model = dict(
    data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False),
    backbone=dict(in_channels=13, init_cfg=dict(bands='mean')),
)
