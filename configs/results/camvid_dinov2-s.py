# CamVid (Brostow et al., 2009; 367, 101 and 233 images of 360x480, 11 classes), a linear head on
# DINOv2 ViT-S/14, images of 168x224, 200 iterations of 4 images: docs/results.md compares methods
# on it. data/camvid has ADE20K's layout, with images/test and annotations/test beside it.
_base_ = '../vpt/linear_vit-s_dinov2_segfolder.py'
dataset = dict(
    data_root='data/camvid',
    classes=['sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car',
             'pedestrian', 'bicyclist'],
    ignore_index=11,
)
test_dataloader = dict(dataset=dict(
    data_prefix=dict(img_path='images/test', seg_map_path='annotations/test')))
img_size = (168, 224)
batch_size = 4
iters = 200
warmup = 20
train_cfg = dict(val_interval=200)
default_hooks = dict(checkpoint=dict(interval=200, max_keep_ckpts=1, save_best=None))


def _rates(lr):
    return dict(optimizer=dict(lr=lr), paramwise_cfg=dict(
        custom_keys=dict(head=dict(lr_mult=0.01 / lr))))


# The middle of the range that a search looks through; 1e-2 for the head.
optim = dict(
    head=_rates(0.01), prompts=_rates(0.01), prompt_layers=_rates(0.003),
    adapters=_rates(0.003), prompts_and_adapters=_rates(0.003), biases=_rates(0.003),
    prompts_and_biases=_rates(0.003), patch_embed=_rates(0.003), blocks=_rates(0.0003),
    all=_rates(0.0001),
)
