# A folder of images with four bands of 16 bits: as four_band_images.py, for classification. They
# are resized by OpenCV: Pillow, as in the base, knows 8 bits only.
_base_ = '../vpt/vit-b_deep_imagefolder.py'
dataset = dict(data_root='data/fields')
model = dict(
    data_preprocessor=dict(mean=None, std=None, to_rgb=False),
    backbone=dict(in_channels=4),
)
_load = dict(type='vpt_dense.LoadBands', mean=[20000.0] * 4, std=[10000.0] * 4)
_resize = dict(type='ResizeEdge', scale=256, edge='short')
_test = [_load, _resize, *_base_.test_pipeline[2:]]
train_dataloader = dict(dataset=dict(pipeline=[_load, _resize, *_base_.train_pipeline[2:]]))
val_dataloader = dict(dataset=dict(pipeline=_test))
test_dataloader = dict(dataset=dict(pipeline=_test))
