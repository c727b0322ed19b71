# ViT-B/16, a fine-grained set.
_base_ = [
    '../_base_/models/vit-b_cls.py',
    '../_base_/datasets/fgvc.py',
    '../_base_/schedules/cls_100e.py',
    '../_base_/default_runtime_cls.py',
    '../_base_/optim/classification.py',
]
