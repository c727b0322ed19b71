# CamVid at twice its size, so that poles and signs are wider than a patch: crops of 378x504 out of
# images scaled by 1.1 to 2.5, 500 iterations of 4; tested at 720x960 in four windows.
_base_ = './camvid_dinov2-s.py'
img_size = (378, 504)
iters = 500
train_cfg = dict(val_interval=500)
default_hooks = dict(checkpoint=dict(interval=50, max_keep_ckpts=1, save_best=None))
model = dict(test_cfg=dict(stride=(342, 456)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadMask'),
    dict(type='RandomResize', scale=(960, 720), ratio_range=(0.55, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(378, 504), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(960, 720), keep_ratio=True),
    dict(type='vpt_dense.LoadMask'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
