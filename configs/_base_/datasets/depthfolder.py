# Any set of images and depth maps of the same names, crops of 512x512:
#     DATA_ROOT/images/{training,validation}/*.jpg (.png, .tif, ...)
#     DATA_ROOT/annotations/{training,validation}/*.png (16 bits), .tif or .npy
# A leaf says where it is and how many units of the files are a metre, once:
#     dataset = dict(data_root='data/rooms', depth_scale=1000)
# `dataset` takes every argument of vpt_dense.DepthFolder. Depths beyond
# model.depth_head.max_depth cannot be found; max_depth_eval of the evaluator goes with it.
_base_ = './nyu.py'
dataset = dict(data_root='data/depthfolder')
crop_size = (512, 512)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadDepth'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='vpt_dense.RandomCrop', crop_size=crop_size),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    # After Resize: the prediction is compared at the size of the annotation.
    dict(type='vpt_dense.LoadDepth'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(
    data_root='data/depthfolder',
    data_prefix=dict(img_path='images/training', depth_map_path='annotations/training'),
    pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(
    data_root='data/depthfolder',
    data_prefix=dict(img_path='images/validation', depth_map_path='annotations/validation'),
    pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(crop_type=None)
test_evaluator = val_evaluator
