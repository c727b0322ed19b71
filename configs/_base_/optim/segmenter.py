# As in mmseg's Segmenter: one rate for all.
_base_ = './segmentation.py'
_sgd = dict(paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=1.0)}))
_groups = ('head', 'prompts', 'biases', 'prompts_and_biases', 'patch_embed', 'all')
optim = {group: _sgd for group in _groups}
