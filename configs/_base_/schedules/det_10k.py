# 10k iterations, linear warm-up over 500 of them, then cosine decay to zero: for small sets.
_base_ = './160k.py'
train_cfg = dict(max_iters=10000, val_interval=1000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=500, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=9500, eta_min=0, begin=500, end=10000, by_epoch=False),
]
default_hooks = dict(
    checkpoint=dict(interval=1000, save_best='coco/bbox_mAP'),
    visualization=dict(_delete_=True, type='DetVisualizationHook'),
)
