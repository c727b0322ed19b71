# ViT-L/16, CIFAR-100: last block and final norm.
_base_ = [
    '../_base_/models/vit-l_cls.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cls_100e.py',
    '../_base_/default_runtime_cls.py',
    '../_base_/tuning/partial-1.py',
]
model = dict(
    data_preprocessor=dict(to_rgb=False),  # CIFAR's images are RGB already
    backbone=_base_.tuning,
    head=dict(num_classes=100),
)
