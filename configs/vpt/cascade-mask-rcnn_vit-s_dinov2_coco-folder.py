# Cascade Mask R-CNN, simple feature pyramid, DINOv2 ViT-S/14: boxes and masks, a COCO folder.
_base_ = [
    '../_base_/models/cascade-mask-rcnn_vit-b.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/coco-folder_masks.py',
    '../_base_/schedules/det_10k.py',
    '../_base_/default_runtime_det.py',
    '../_base_/optim/detection.py',
]
img_size = 1008
