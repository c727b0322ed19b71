# NYUDv2 with four tasks, crops of 448x576; docs/multi-task-training.md says more:
#     DATA_ROOT/images, gt_sets, segmentation, depth, normals, edge, as NYUD_MT.tgz unpacks
_base_ = './pascal-context_tasks.py'
dataset = dict(type='vpt_dense.NYUDv2', data_root='data/NYUD_MT')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadTasks'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='vpt_dense.RandomCrop', crop_size=(448, 576)),
    dict(type='PhotoMetricDistortion'),
    dict(type='vpt_dense.PackTasks'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(576, 448), keep_ratio=False),
    dict(type='vpt_dense.LoadTasks'),
    dict(type='vpt_dense.PackTasks'),
]
train_dataloader = dict(
    dataset=dict(**dataset, ann_file='gt_sets/train.txt', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**dataset, ann_file='gt_sets/val.txt', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='vpt_dense.MultiTaskMetric', tasks=dict(
    seg=dict(type='vpt_dense.IoUMetric'),
    depth=dict(type='vpt_dense.DepthMetric'),
    normals=dict(type='vpt_dense.NormalMetric'),
    edges=dict(type='vpt_dense.EdgeMetric'),
))
test_evaluator = val_evaluator
