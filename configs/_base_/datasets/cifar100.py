# CIFAR-100, all 50,000 training images (VTAB-1k trains on 1,000 of them). 169 MB, fetched from its
# authors (https://www.cs.toronto.edu/~kriz/cifar.html) on first use and checked by md5; or unpack
# cifar-100-python.tar.gz in data_root yourself. As in the paper's VTAB runs: resized to 224x224,
# no augmentation.
dataset = dict(type='CIFAR100', data_root='data/cifar100')
_pipeline = [
    dict(type='Resize', scale=(224, 224), interpolation='bilinear', backend='pillow'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**dataset, split='train', pipeline=_pipeline),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, split='test', pipeline=_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='vpt_dense.Accuracy', topk=(1,))
test_evaluator = val_evaluator
