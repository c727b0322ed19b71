# Linear head, DINOv2 ViT-L/14, Cityscapes in crops of 518x518. To test on other streets too:
# test_sets, as in linear_vit-l_dinov2_gtav.py.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov2_vit-l.py',
    '../_base_/datasets/driving_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
img_size = 518
