# 100 epochs, cosine to zero after 10 epochs of linear warm-up: the paper's schedule. The first
# epoch runs at a tenth of the learning rate (the original's runs at zero: a wasted epoch).
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=10, by_epoch=True),
    dict(type='CosineAnnealingLR', T_max=90, eta_min=0, begin=10, end=100, by_epoch=True),
]
# The learning rates in _base_/optim/classification.py are the paper's base rates, for 256 images a
# step; this multiplies them by the images of a step (batch size x processes x
# accumulative_counts) / 256.
auto_scale_lr = dict(base_batch_size=256, enable=True)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', interval=1, max_keep_ckpts=2, save_best='accuracy/top1'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False),
)
log_processor = dict(by_epoch=True)
