# ADE20K scene parsing (SceneParse150), crops of 512x512; docs/datasets.md says where to get it.
# `dataset` is what all splits have in common; a leaf that changes it changes every split, but for
# what the data set of a dataloader says itself.
dataset = dict(type='ADE20KDataset', data_root='data/ade/ADEChallengeData2016')
crop_size = (512, 512)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadMask'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='vpt_dense.RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    # After Resize: the prediction is compared at the size of the annotation.
    dict(type='vpt_dense.LoadMask'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=2,  # a GPU; the schedule is for 8 of them (16 images a step)
    # tools/benchmark/loader.py on 2 virtual CPUs: 140 images of 683x512 a second without workers,
    # 175 with 2, no more with 4; OpenCV's own threads bring nothing.
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,  # or every validation starts them anew
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='vpt_dense.IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

# Multi-scale and flip (`tools/test.py --tta`): 0.5 to 1.75 times the single scale, and mirrored.
tta_model = dict(type='vpt_dense.SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(int(2048 * ratio), int(512 * ratio)), keep_ratio=True)
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [
                dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            ],
            [dict(type='vpt_dense.LoadMask')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
