# Linear probing: what is called head-only in segmentation.
# Trainable: 0
_base_ = './head.py'
