# PASCAL-Context with five tasks, crops of 512x512; docs/multi-task-training.md says more:
#     DATA_ROOT/JPEGImages, ImageSets/Context, semseg, human_parts, sal_distill, normals_distill,
#     pascal-context/trainval, as PASCAL_MT.tgz unpacks
dataset = dict(type='vpt_dense.PASCALContext', data_root='data/PASCAL_MT')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadTasks'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='vpt_dense.RandomCrop', crop_size=(512, 512)),
    dict(type='PhotoMetricDistortion'),
    dict(type='vpt_dense.PackTasks'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(512, 512), keep_ratio=False),
    # After Resize: predictions are compared at the size of the maps.
    dict(type='vpt_dense.LoadTasks'),
    dict(type='vpt_dense.PackTasks'),
]
train_dataloader = dict(
    batch_size=2,  # a GPU; the schedule is for 8 of them (16 images a step)
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(**dataset, ann_file='ImageSets/Context/train.txt', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, ann_file='ImageSets/Context/val.txt', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='vpt_dense.MultiTaskMetric', tasks=dict(
    seg=dict(type='vpt_dense.IoUMetric'),
    parts=dict(type='vpt_dense.IoUMetric'),
    saliency=dict(type='vpt_dense.IoUMetric'),
    normals=dict(type='vpt_dense.NormalMetric'),
    edges=dict(type='vpt_dense.EdgeMetric'),
))
test_evaluator = val_evaluator
