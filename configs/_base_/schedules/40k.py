# 40k iterations, linear warm-up over 1500 of them, then a linear decay to zero: DINOv2's schedule
# for linear heads (https://github.com/facebookresearch/dinov2).
_base_ = './160k.py'
train_cfg = dict(max_iters=40000, val_interval=4000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=40000, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=4000))
