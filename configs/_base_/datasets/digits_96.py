# Handwritten digits over textures, made by `tools/make_dataset.py digits data/digits`.
# Settings are chosen on the validation split; reported is the test split.
dataset = dict(
    type='BaseSegDataset',
    data_root='data/digits',
    img_suffix='.png',
    seg_map_suffix='.png',
    reduce_zero_label=False,
    metainfo=dict(
        classes=('background', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'),
        palette=[
            [0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200],
            [245, 130, 48], [145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60],
            [250, 190, 212],
        ],
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    # No flips: a mirrored digit is another sign.
    dict(type='RandomResize', scale=(96, 96), ratio_range=(1.0, 1.15), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(96, 96)),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=16,
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
test_dataloader = dict(
    batch_size=25,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/test', seg_map_path='annotations/test'),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='vpt_dense.IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
