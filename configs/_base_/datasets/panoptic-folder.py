# Any panoptic set in COCO's form, crops of 1024x1024 (img_size sets another):
#     DATA_ROOT/images/*.jpg (.png, ...)
#     DATA_ROOT/panoptic/*.png, the ids of segments as colours
#     DATA_ROOT/train.json, DATA_ROOT/val.json
# A leaf says where they are. Classes are those of train.json, unless it names some of them, things
# before stuff:
#     dataset = dict(data_root='data/streets', classes=['car', 'pedestrian', 'road', 'sky'])
# Other places, here of training:
#     train_dataloader = dict(dataset=dict(
#         ann_file='annotations/panoptic_train2017.json',
#         data_prefix=dict(img='train2017', seg='annotations/panoptic_train2017')))
_base_ = './coco-folder.py'
crop_size = (1024, 1024)
dataset = dict(
    type='vpt_dense.PanopticFolder', data_root='data/panoptic-folder',
    data_prefix=dict(img='images', seg='panoptic'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadPanopticAnnotations'),
    dict(type='RandomResize', scale=crop_size, ratio_range=(0.5, 1.5), keep_ratio=True),
    # A crop without a thing in it is one of stuff.
    dict(type='RandomCrop', crop_size=crop_size, allow_negative_crop=True, recompute_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    # What a crop leaves without a pixel.
    dict(type='FilterAnnotations', by_box=False, by_mask=True, keep_empty=False),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=crop_size, keep_ratio=True),
    # After Resize: the prediction is compared at the size of the file.
    dict(type='vpt_dense.LoadPanopticAnnotations'),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(**dataset, pipeline=test_pipeline))
val_evaluator = dict(_delete_=True, type='vpt_dense.PanopticMetric')
test_evaluator = dict(_delete_=True, type='vpt_dense.PanopticMetric')
