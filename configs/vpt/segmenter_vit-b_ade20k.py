# Segmenter, ViT-B/16, ADE20K.
_base_ = [
    '../_base_/models/segmenter_vit-b.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/160k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/segmentation.py',
]
# As in mmseg's Segmenter: one rate for all.
_sgd = dict(paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=1.0)}))
_groups = ('head', 'prompts', 'biases', 'prompts_and_biases', 'patch_embed', 'all')
optim = {group: _sgd for group in _groups}
