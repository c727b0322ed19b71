# DINOv3's optimizer for linear heads: DINOv2's, with more weight decay.
_base_ = './linear.py'
optim = {group: dict(optimizer=dict(weight_decay=0.001)) for group in _base_.optim}
