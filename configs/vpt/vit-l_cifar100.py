# ViT-L/16, CIFAR-100.
_base_ = [
    '../_base_/models/vit-l_cls.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cls_100e.py',
    '../_base_/default_runtime_cls.py',
    '../_base_/optim/classification.py',
]
model = dict(
    data_preprocessor=dict(to_rgb=False),  # CIFAR's images are RGB already
    head=dict(num_classes=100),
)
