# 40k iterations, linear warm-up of 1500 and cosine decay to zero: DINOv3's schedule for linear
# heads (https://github.com/facebookresearch/dinov3).
_base_ = './40k.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=38500, eta_min=0, begin=1500, end=40000, by_epoch=False),
]
