# Red, green, blue and near-infrared at 16 bits: every band is loaded as it is stored, and the patch
# embedding of the 3-band weights is spread over 4 bands. mean and std are in the files' units; the
# data preprocessor could not take four.
_base_ = '../vpt/setr_vit-l_deep_segfolder.py'
dataset = dict(data_root='data/fields', classes=['soil', 'crop', 'water'])
model = dict(
    data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False),
    backbone=dict(in_channels=4),
)
_load = dict(type='vpt_dense.LoadBands', mean=[20000.0] * 4, std=[10000.0] * 4)
# Without PhotoMetricDistortion (the last but one): it knows three bands of 8 bits only.
_train = [_load, *_base_.train_pipeline[1:-2], _base_.train_pipeline[-1]]
_test = [_load, *_base_.test_pipeline[1:]]
train_dataloader = dict(dataset=dict(pipeline=_train))
val_dataloader = dict(dataset=dict(pipeline=_test))
test_dataloader = dict(dataset=dict(pipeline=_test))
