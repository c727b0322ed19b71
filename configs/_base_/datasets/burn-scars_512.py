# HLS Burn Scars (https://huggingface.co/datasets/ibm-nasa-geospatial/hls_burn_scars): 512x512, six
# bands (B2, B3, B4, B8A, B11, B12) in reflectance; training and validation as they are unpacked.
# Mean and std are those of terratorch.
_base_ = './sen1floods11_512.py'
dataset = dict(type='vpt_dense.PublicSet', name='hls-burn-scars', data_root='data/hls_burn_scars')
_load = dict(
    type='vpt_dense.LoadBands',
    mean=[0.03335, 0.05701, 0.05890, 0.23232, 0.19729, 0.11945],
    std=[0.02269, 0.02681, 0.04004, 0.07792, 0.08709, 0.07242],
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
_val = dict(_delete_=True, **dataset, split='val', pipeline=test_pipeline)
train_dataloader = dict(dataset=dict(
    _delete_=True, **dataset, split='train', pipeline=train_pipeline))
val_dataloader = dict(dataset=_val)
test_dataloader = dict(dataset=_val)
