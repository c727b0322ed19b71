# det_10k.py, with the best checkpoint by panoptic quality.
_base_ = './det_10k.py'
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ', rule='greater'))
