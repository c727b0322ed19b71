# Any classification set in folders; the class names are those of the folders:
#     DATA_ROOT/train/<class>/*.jpg (.png, .tif, ...), DATA_ROOT/val/<class>/*.jpg
# A leaf says where: dataset = dict(data_root='data/flowers')
# Augmentation of the paper's fine-grained sets: short side 256, random crop 224, flip.
dataset = dict(type='vpt_dense.ImageFolder', data_root='data/imagefolder')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', interpolation='bilinear', backend='pillow'),
    dict(type='RandomCrop', crop_size=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', interpolation='bilinear', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, data_prefix='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, data_prefix='val', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='vpt_dense.Accuracy', topk=(1,))
test_evaluator = val_evaluator
