# Linear probing: what is called head-only in segmentation.
_base_ = './head.py'
