# Streets with the 19 classes of Cityscapes, crops of 512x512: cityscapes, bdd100k, acdc or gtav as
# they are unpacked (docs/fields.md). A leaf or the command line says which:
#     dataset = dict(name='bdd100k', data_root='data/bdd100k')
# gtav has no splits: train_dataloader = dict(dataset=dict(split='all')).
_base_ = './ade20k_512.py'
dataset = dict(type='vpt_dense.PublicSet', name='cityscapes', data_root='data/cityscapes')
_train = dict(**dataset, split='train', pipeline=_base_.train_pipeline)
_val = dict(**dataset, split='val', pipeline=_base_.test_pipeline)
train_dataloader = dict(dataset=dict(_delete_=True, **_train))
val_dataloader = dict(dataset=dict(_delete_=True, **_val))
test_dataloader = dict(dataset=dict(_delete_=True, **_val))
