# SETR-PUP, ViT-L/16, ADE20K: five sets of VPT-deep on one backbone (docs/ensembles.md).
_base_ = './setr_vit-l_deep_ade20k.py'
ensemble = dict(seeds=[0, 1, 2, 3, 4])
