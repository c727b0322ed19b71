# ATSS, simple feature pyramid, DINOv2 ViT-S/14, a COCO folder.
_base_ = [
    '../_base_/models/atss_vit-b.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/coco-folder.py',
    '../_base_/schedules/det_10k.py',
    '../_base_/default_runtime_det.py',
    '../_base_/optim/detection.py',
]
img_size = 1008
