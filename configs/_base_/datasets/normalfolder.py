# Any set of images and maps of normals of the same names, crops of 512x512:
#     DATA_ROOT/images/{training,validation}/*.jpg (.png, .tif, ...)
#     DATA_ROOT/annotations/{training,validation}/*.png (R, G, B are x, y, z), .tif or .npy
_base_ = './depthfolder.py'
_set = dict(type='vpt_dense.NormalFolder', data_root='data/normalfolder')
dataset = dict(_delete_=True, **_set)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadNormals'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='vpt_dense.RandomCrop', crop_size=(512, 512)),
    dict(type='PhotoMetricDistortion'),
    dict(type='vpt_dense.PackNormals'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    # After Resize: the prediction is compared at the size of the annotation.
    dict(type='vpt_dense.LoadNormals'),
    dict(type='vpt_dense.PackNormals'),
]
train_dataloader = dict(dataset=dict(
    _delete_=True, **_set,
    data_prefix=dict(img_path='images/training', normal_map_path='annotations/training'),
    pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(
    _delete_=True, **_set,
    data_prefix=dict(img_path='images/validation', normal_map_path='annotations/validation'),
    pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='vpt_dense.NormalMetric')
test_evaluator = val_evaluator
