# EoMT, DINOv2 ViT-S/14: things and stuff, a panoptic folder.
_base_ = [
    '../_base_/models/eomt-panoptic_vit-b.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/panoptic-folder.py',
    '../_base_/schedules/panoptic_10k.py',
    '../_base_/default_runtime_det.py',
    '../_base_/optim/detection.py',
]
img_size = 644
