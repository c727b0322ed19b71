# NWPU-RESISC45 (Cheng et al., 2017) by torchgeo: 45 kinds of scenes from the air, 700 images of
# 256x256 each, with the split of Neumann et al. (2019). Another set of torchgeo's:
#     dataset = dict(name='UCMerced', data_root='data/ucmerced', classes=[...])
_base_ = './imagefolder.py'
dataset = dict(
    type='vpt_dense.TorchGeoClasses', name='RESISC45', data_root='data/resisc45',
    metainfo=dict(classes=[
        'airplane', 'airport', 'baseball_diamond', 'basketball_court', 'beach', 'bridge',
        'chaparral', 'church', 'circular_farmland', 'cloud', 'commercial_area', 'dense_residential',
        'desert', 'forest', 'freeway', 'golf_course', 'ground_track_field', 'harbor',
        'industrial_area', 'intersection', 'island', 'lake', 'meadow', 'medium_residential',
        'mobile_home_park', 'mountain', 'overpass', 'palace', 'parking_lot', 'railway',
        'railway_station', 'rectangular_farmland', 'river', 'roundabout', 'runway', 'sea_ice',
        'ship', 'snowberg', 'sparse_residential', 'stadium', 'storage_tank', 'tennis_court',
        'terrace', 'thermal_power_station', 'wetland']))
_load = dict(
    type='vpt_dense.LoadBands', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
_resize = dict(type='ResizeEdge', scale=256, edge='short')
train_pipeline = [
    _load, _resize, dict(type='RandomCrop', crop_size=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'), dict(type='PackInputs')]
test_pipeline = [_load, _resize, dict(type='CenterCrop', crop_size=224), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(
    _delete_=True, **dataset, split='train', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(_delete_=True, **dataset, split='val', pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(
    _delete_=True, **dataset, split='test', pipeline=test_pipeline))
