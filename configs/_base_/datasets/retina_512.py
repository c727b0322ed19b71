# The back of the eye: drive as it is unpacked, refuge as mmseg's converter recodes it
# (docs/fields.md). DRIVE has 20 images for training and 20 for the test, and none for validation.
_base_ = './ade20k_512.py'
dataset = dict(type='vpt_dense.PublicSet', name='drive', data_root='data/drive')
_test = dict(_delete_=True, **dataset, split='test', pipeline=_base_.test_pipeline)
train_dataloader = dict(dataset=dict(
    _delete_=True, **dataset, split='train', pipeline=_base_.train_pipeline))
val_dataloader = dict(dataset=_test)
test_dataloader = dict(dataset=_test)
val_evaluator = dict(type='vpt_dense.IoUMetric', iou_metrics=['mIoU'])
test_evaluator = [val_evaluator, dict(type='vpt_dense.VolumeMetric', hd95=False)]
