# Pretrains the demo's small ViT on formula-driven images (vpt_dense/demo/formula.py): a label
# for every pixel, learned with SETR heads that are thrown away afterwards. The one command is
# `python tools/pretrain_demo.py`: it makes the data, runs this config and exports the backbone.
_base_ = ['../_base_/models/setr_vit-demo.py', '../_base_/default_runtime.py']
max_iters = 3600
num_classes = 50  # 8 textures, which come first, and 42 shapes
model = dict(
    backbone=dict(init_cfg=None),
    # Labels of every fourth pixel in both directions (24x24) and one convolution: the head is to
    # leave the work to the backbone, and costs a twentieth of it.
    decode_head=dict(
        num_classes=num_classes,
        kernel_size=3,
        up_scale=2,
        channels=128,
        # Backgrounds cover three quarters of the pixels; shapes are what is to be learned.
        loss_decode=dict(class_weight=[0.1] * 8 + [1.0] * (num_classes - 8)),
    ),
)

dataset = dict(
    type='BaseSegDataset',
    data_root='data/formula',
    img_suffix='.png',
    seg_map_suffix='.png',
    reduce_zero_label=False,
    metainfo=dict(
        classes=tuple(f'formula-{i}' for i in range(num_classes)),
        palette=[[7 * i % 256, 53 * i % 256, 97 * i % 256] for i in range(num_classes)],
    ),
)
# No flips: the features are to tell a shape from its mirror image.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='vpt_dense.StrideLabels', stride=4),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=25,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='vpt_dense.IoUMetric', iou_metrics=['mIoU'])

custom_hooks = [dict(type='vpt_dense.ViTStartHook', eps=0.5), *_base_.custom_hooks]

optim_wrapper = dict(
    type='vpt_dense.AmpOptimWrapper',
    optimizer=dict(type='vpt_dense.MuonAdamW', lr=1e-3, muon_factor=20.0, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'pos_embed': dict(decay_mult=0.0), 'cls_token': dict(decay_mult=0.0)},
    ),
    clip_grad=dict(max_norm=5.0),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=150),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=150, end=max_iters, eta_min=0),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1000, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
log_processor = dict(by_epoch=False)
