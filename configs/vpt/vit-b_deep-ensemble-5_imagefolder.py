# ViT-B/16, a folder of images: five sets of VPT-deep on one backbone (docs/ensembles.md).
_base_ = './vit-b_deep_imagefolder.py'
ensemble = dict(seeds=[0, 1, 2, 3, 4])
