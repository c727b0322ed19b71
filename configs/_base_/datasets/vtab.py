# A task of VTAB-1k: data/vtab-1k/TASK/{images/, train800.txt, val200.txt, train800val200.txt,
# test.txt}, the folders that the field shares (docs/datasets.md). A leaf says which:
# dataset = dict(data_root='data/vtab-1k/dtd'). As in the paper: resized to 224x224, without
# augmentation. Training on train800 and validation on val200 is for choosing settings;
# configs/suites/vtab-1k.py then trains on both.
dataset = dict(type='vpt_dense.VTAB', data_root='data/vtab-1k/cifar')
_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(224, 224), interpolation='bilinear', backend='pillow'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, split='train800', pipeline=_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, split='val200', pipeline=_pipeline),
)
test_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, split='test', pipeline=_pipeline),
)
val_evaluator = dict(type='vpt_dense.Accuracy', topk=(1,))
test_evaluator = val_evaluator
