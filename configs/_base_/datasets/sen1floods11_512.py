# Sen1Floods11 (Bonafilia et al., CVPR workshops 2020): water in Sentinel-2 images of 512x512, 13
# bands, as it is unpacked, with its own lists (docs/fields.md). Mean and std are those of
# terratorch, in the files' units.
_base_ = './ade20k_512.py'
dataset = dict(type='vpt_dense.PublicSet', name='sen1floods11', data_root='data/sen1floods11')
_load = dict(
    type='vpt_dense.LoadBands',
    mean=[1645.1, 1413.0, 1379.6, 1235.4, 1481.1, 2399.2, 2858.8, 2634.5, 3090.3, 491.1, 65.3,
          2045.0, 1191.2],
    std=[697.7, 740.6, 737.0, 869.2, 777.9, 910.5, 1069.1, 1009.7, 1179.9, 338.0, 146.3, 977.2,
         766.0],
)
train_pipeline = [
    _load,
    dict(type='vpt_dense.LoadMask'),
    dict(type='RandomResize', scale=(512, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='vpt_dense.RandomCrop', crop_size=(512, 512), cat_max_ratio=0.95),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [_load, dict(type='vpt_dense.LoadMask'), dict(type='PackSegInputs')]
train_dataloader = dict(dataset=dict(
    _delete_=True, **dataset, split='train', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(_delete_=True, **dataset, split='val', pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(
    _delete_=True, **dataset, split='test', pipeline=test_pipeline))
