# Linear head, DINOv2 ViT-B/14, land cover of DeepGlobe by torchgeo in crops of 518x518.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov2_vit-b.py',
    '../_base_/datasets/deepglobe_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
img_size = 518
model = dict(data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False))
