# 38,400 iterations, as DINOv3 trains heads of depth (https://github.com/facebookresearch/dinov3):
# linear warm-up over a third of them, then a cosine.
_base_ = './160k.py'
train_cfg = dict(max_iters=38400, val_interval=3840)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=12800, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=25600, eta_min=0, begin=12800, end=38400, by_epoch=False),
]
default_hooks = dict(
    checkpoint=dict(interval=3840, save_best='rmse', rule='less'),
    visualization=dict(type='vpt_dense.MapVisualizationHook'),
)
