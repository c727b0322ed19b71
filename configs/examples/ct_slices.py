# Axial slices of CT volumes in NIfTI, images/training/*.nii.gz with masks of the same names in
# annotations/training: pip install 'vpt-dense[medical]'. One band in Hounsfield units; its part of
# the patch embedding is the sum over red, green and blue of the 3-band weights.
_base_ = '../vpt/setr_vit-l_deep_segfolder.py'
dataset = dict(data_root='data/liver', classes=['other', 'liver', 'tumour'])
model = dict(
    data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False),
    backbone=dict(in_channels=1),
)
_load = dict(type='vpt_dense.LoadBands', mean=[40.0], std=[150.0])
# Without PhotoMetricDistortion (the last but one): it knows three bands of 8 bits only.
_train = [_load, *_base_.train_pipeline[1:-2], _base_.train_pipeline[-1]]
_test = [_load, *_base_.test_pipeline[1:]]
train_dataloader = dict(dataset=dict(pipeline=_train))
val_dataloader = dict(dataset=dict(pipeline=_test))
test_dataloader = dict(dataset=dict(pipeline=_test))
