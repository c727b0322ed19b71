# SETR-PUP, SigLIP 2 ViT-B/16, ADE20K.
_base_ = [
    '../_base_/models/setr-pup_vit-l.py',
    '../_base_/backbones/siglip2_vit-b.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/160k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/segmentation.py',
]
