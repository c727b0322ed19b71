# UperNet with a feature pyramid, DINOv3 ViT-S/16, ADE20K.
_base_ = [
    '../_base_/models/upernet_vit-b.py',
    '../_base_/backbones/dinov3_vit-s.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/160k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/upernet_vit.py',
]
