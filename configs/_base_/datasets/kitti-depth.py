# Depth of KITTI, Eigen's split; docs/depth.md says which lists:
#     DATA_ROOT/images/2011_09_26/DRIVE/image_02/data/*.jpg (.png), as of the raw recordings
#     DATA_ROOT/depth/DRIVE/proj_depth/groundtruth/image_02/*.png, 16 bits, 256 units a metre
#     DATA_ROOT/eigen_{train,test}.txt: image, depth map and focal length in a line
_base_ = './nyu.py'
dataset = dict(_delete_=True, type='vpt_dense.DepthFolder', data_root='data/kitti', depth_scale=256)
crop_size = (352, 704)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadDepth'),
    dict(type='vpt_dense.KITTICrop'),
    dict(type='RandomRotate', prob=0.5, degree=1.0, seg_pad_val=0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='vpt_dense.RandomCrop', crop_size=crop_size),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadDepth'),
    dict(type='vpt_dense.KITTICrop'),
    dict(type='PackSegInputs'),
]
_places = dict(img_path='images', depth_map_path='depth')
train_dataloader = dict(dataset=dict(
    **dataset, ann_file='eigen_train.txt', data_prefix=_places, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(
    **dataset, ann_file='eigen_test.txt', data_prefix=_places, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(max_depth_eval=80.0, crop_type='garg_crop')
test_evaluator = val_evaluator
