# ViT-B/16, a folder of images: E2VPT without pruning.
_base_ = [
    '../_base_/models/vit-b_cls.py',
    '../_base_/datasets/imagefolder.py',
    '../_base_/schedules/cls_100e.py',
    '../_base_/default_runtime_cls.py',
    '../_base_/tuning/e2vpt.py',
]
model = dict(backbone=_base_.tuning)
