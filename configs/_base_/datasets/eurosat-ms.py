# EuroSAT with all 13 bands (Helber et al., 2019), as EuroSATallBands.zip unpacks, with the split
# that is in common use (docs/fields.md); 64x64 pixels, enlarged to 224. Mean and std, and the order
# of the bands (B8A is the last), are torchgeo's, in the files' units.
_base_ = './imagefolder.py'
dataset = dict(type='vpt_dense.EuroSAT', data_root='data/eurosat-ms')
_load = dict(
    type='vpt_dense.LoadBands',
    mean=[1354.4, 1118.2, 1042.9, 947.6, 1199.5, 1999.8, 2369.2, 2296.8, 732.1, 12.1, 1819.0,
          1118.9, 2594.1],
    std=[245.7, 333.0, 395.1, 593.8, 566.4, 861.2, 1086.6, 1118.0, 404.9, 4.8, 1002.6, 761.3,
         1231.6],
)
_resize = dict(type='ResizeEdge', scale=224, edge='short')
_crop = dict(type='CenterCrop', crop_size=224)
train_pipeline = [
    _load, _resize, _crop, dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs')]
test_pipeline = [_load, _resize, _crop, dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(
    _delete_=True, **dataset, split='train', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(_delete_=True, **dataset, split='val', pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(
    _delete_=True, **dataset, split='test', pipeline=test_pipeline))
