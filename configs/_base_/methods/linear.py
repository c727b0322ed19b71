# Linear probing: what is called head-only in segmentation.
# Task: classification
# Trainable: 0
_base_ = './head.py'
