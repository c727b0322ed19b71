# 160k iterations, 1,500 of linear warm-up, then linear decay to zero: mmseg's schedule for Swin.
_base_ = './160k.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=160000, by_epoch=False),
]
