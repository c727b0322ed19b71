# Synapse / BTCV (https://www.synapse.org/#!Synapse:syn3193805), RawData/Training as it is unpacked:
# img/img0001.nii.gz, label/label0001.nii.gz, 13 organs of which eight are classes. train.txt and
# val.txt in data_root name the volumes of each split, a line each: img0005. Hounsfield units are
# cut to [-125, 275], as is usual on this set.
_base_ = './ade20k_512.py'
dataset = dict(
    type='vpt_dense.PublicSet', name='synapse', split='all', data_root='data/synapse')
_load = dict(type='vpt_dense.LoadBands', mean=[75.0], std=[115.0], window=(-125, 275))
train_pipeline = [
    _load,
    dict(type='vpt_dense.LoadMask'),
    dict(type='RandomResize', scale=(512, 512), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='vpt_dense.RandomCrop', crop_size=(512, 512)),
    dict(type='PackSegInputs'),
]
test_pipeline = [_load, dict(type='vpt_dense.LoadMask'), dict(type='PackSegInputs')]
_val = dict(_delete_=True, **dataset, ann_file='val.txt', pipeline=test_pipeline)
train_dataloader = dict(dataset=dict(
    _delete_=True, **dataset, ann_file='train.txt', pipeline=train_pipeline))
val_dataloader = dict(dataset=_val)
test_dataloader = dict(dataset=_val)
val_evaluator = dict(type='vpt_dense.IoUMetric', iou_metrics=['mIoU'])
# Distances take longer than the rest of a validation.
test_evaluator = [val_evaluator, dict(type='vpt_dense.VolumeMetric')]
