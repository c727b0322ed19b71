# Images in R, G, B from the air, crops of 512x512: loveda as it is unpacked, potsdam and isaid as
# mmseg's converters cut them (docs/fields.md). A leaf or the command line says which:
#     dataset = dict(name='potsdam', data_root='data/potsdam')
_base_ = './ade20k_512.py'
dataset = dict(type='vpt_dense.PublicSet', name='loveda', data_root='data/loveda')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadMask'),
    dict(type='PackSegInputs'),
]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadMask'),
    dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='vpt_dense.RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
_val = dict(_delete_=True, **dataset, split='val', pipeline=test_pipeline)
train_dataloader = dict(dataset=dict(
    _delete_=True, **dataset, split='train', pipeline=train_pipeline))
val_dataloader = dict(dataset=_val)
test_dataloader = dict(dataset=_val)
