# DeepGlobe land cover (Demir et al., CVPR workshops 2018) by torchgeo: images of 2448x2448 in R, G,
# B, masks in colours; what is unknown, label 6, is ignored. It has the splits train and test.
# Another set of torchgeo's, with its own classes:
#     dataset = dict(name='Potsdam2D', data_root='data/potsdam', classes=[...], label_map=None)
_base_ = './ade20k_512.py'
dataset = dict(
    type='vpt_dense.TorchGeo', name='DeepGlobeLandCover', data_root='data/deepglobe',
    metainfo=dict(
        classes=['urban', 'agriculture', 'rangeland', 'forest', 'water', 'barren'],
        palette=[[0, 255, 255], [255, 255, 0], [255, 0, 255], [0, 255, 0], [0, 0, 255],
                 [255, 255, 255]]),
    label_map={6: 255},
)
# ImageNet's, of values from 0 to 255; `vpt-dense check --stats` prints those of the set.
_load = dict(
    type='vpt_dense.LoadBands', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
train_pipeline = [
    _load,
    dict(type='vpt_dense.LoadMask'),
    dict(type='RandomResize', scale=(1224, 1224), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='vpt_dense.RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    _load,
    dict(type='Resize', scale=(1224, 1224), keep_ratio=True),
    # After Resize: the prediction is compared at the size of the annotation.
    dict(type='vpt_dense.LoadMask'),
    dict(type='PackSegInputs'),
]
_test = dict(_delete_=True, **dataset, split='test', pipeline=test_pipeline)
train_dataloader = dict(dataset=dict(
    _delete_=True, **dataset, split='train', pipeline=train_pipeline))
val_dataloader = dict(dataset=_test)
test_dataloader = dict(dataset=_test)
