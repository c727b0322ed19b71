# Depth of NYU Depth v2, images of 640x480, as mmseg and others lay it out; docs/depth.md says more:
#     DATA_ROOT/images/{train,test}/*.jpg
#     DATA_ROOT/annotations/{train,test}/*.png, 16 bits, millimetres
dataset = dict(type='vpt_dense.DepthFolder', data_root='data/nyu', depth_scale=1000)
crop_size = (416, 544)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadDepth'),
    dict(type='RandomRotate', prob=0.5, degree=2.5, seg_pad_val=0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='vpt_dense.RandomCrop', crop_size=crop_size),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadDepth'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=2,  # a GPU; the schedule is for 8 of them (16 images a step)
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/train', depth_map_path='annotations/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/test', depth_map_path='annotations/test'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='vpt_dense.DepthMetric', max_depth_eval=10.0, crop_type='nyu_crop')
test_evaluator = val_evaluator
