# Any segmentation set in ADE20K's layout, crops of 512x512:
#     DATA_ROOT/images/{training,validation}/*.jpg (.png, .tif, ...)
#     DATA_ROOT/annotations/{training,validation}/*.png (.tif, ...), one channel of class ids
# A leaf names the classes (and a palette, if it likes), in label order, once:
#     dataset = dict(data_root='data/potholes', classes=['road', 'pothole'])
# `dataset` takes every argument of vpt_dense.SegFolder, e.g. reduce_zero_label=True.
_base_ = './ade20k_512.py'
dataset = dict(type='vpt_dense.SegFolder', data_root='data/segfolder')
train_dataloader = dict(dataset=dict(**dataset))
val_dataloader = dict(dataset=dict(**dataset))
test_dataloader = dict(dataset=dict(**dataset))
