# SETR-PUP, ViT-L/16, a folder of images and masks.
_base_ = [
    '../_base_/models/setr-pup_vit-l.py',
    '../_base_/datasets/segfolder_512.py',
    '../_base_/schedules/160k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/segmentation.py',
]
