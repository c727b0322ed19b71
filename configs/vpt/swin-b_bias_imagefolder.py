# Swin-B, a folder of images: bias tuning.
_base_ = [
    '../_base_/models/swin-b_cls.py',
    '../_base_/datasets/imagefolder.py',
    '../_base_/schedules/cls_100e.py',
    '../_base_/default_runtime_cls.py',
    '../_base_/tuning/cls/bias.py',
]
model = dict(backbone=_base_.tuning)
