# SETR on the small ViT of this repository, digits: five sets of VPT-deep on one backbone.
_base_ = './setr_deep_digits.py'
ensemble = dict(seeds=[0, 1, 2, 3, 4])
