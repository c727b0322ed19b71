# UperNet with a feature pyramid, ViT-B/16, ADE20K.
_base_ = [
    '../_base_/models/upernet_vit-b.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/160k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/segmentation.py',
]
# The pyramid starts at random, as the heads do.
_sgd = dict(paramwise_cfg=dict(custom_keys={'neck': dict(lr_mult=10.0)}))
_groups = ('head', 'prompts', 'biases', 'prompts_and_biases', 'patch_embed')
# Full tuning has a schedule of its own: upernet_vit-b_full_ade20k.py.
optim = dict(all=None, **{group: _sgd for group in _groups})
