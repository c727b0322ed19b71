# Simulated textiles, whole, with a local or with a global fault (100 images of each for training,
# 40 for validation, 360 for the test), DINOv2 ViT-S/14, whole images at 168x168, 100 iterations of
# 16: docs/results.md compares methods on it. `python tools/dev/make_textiles.py data/textiles`
# makes the data.
_base_ = './flowers_dinov2-s.py'
dataset = dict(data_root='data/textiles')
img_size = 168
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=168),  # a crop might leave the fault out
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=168),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
