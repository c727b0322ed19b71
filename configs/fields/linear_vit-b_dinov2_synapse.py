# Linear head, DINOv2 ViT-B/14, eight organs in slices of CT volumes (Synapse): Dice and HD95 by
# volume beside mIoU. pip install 'vpt-dense[medical]'. Which volumes train says a list
# (docs/fields.md).
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov2_vit-b.py',
    '../_base_/datasets/synapse_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
img_size = 518
model = dict(
    data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False),
    backbone=dict(in_channels=1),
)
