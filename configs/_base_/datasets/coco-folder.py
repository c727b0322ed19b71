# Any detection set in COCO's form, crops of 1024x1024 (img_size sets another):
#     DATA_ROOT/images/*.jpg (.png, ...)
#     DATA_ROOT/train.json, DATA_ROOT/val.json
# A leaf says where they are. Classes are those of train.json, unless it names some of them:
#     dataset = dict(data_root='data/cells', classes=['red cell', 'white cell'])
# Other places, here of training:
#     train_dataloader = dict(dataset=dict(
#         ann_file='annotations/instances_train2017.json', data_prefix=dict(img='train2017')))
dataset = dict(
    type='vpt_dense.CocoFolder', data_root='data/coco-folder', data_prefix=dict(img='images'))
crop_size = (1024, 1024)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=crop_size, ratio_range=(0.5, 1.5), keep_ratio=True),
    # An image without a box in it is one of background.
    dict(type='RandomCrop', crop_size=crop_size, allow_negative_crop=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=crop_size, keep_ratio=True),
    # After Resize: the prediction is compared at the size of the file.
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(**dataset, ann_file='train.json', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, ann_file='val.json', test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='vpt_dense.CocoMetric', metric='bbox')
test_evaluator = val_evaluator
