# The pyramid starts at random, as the heads do.
_base_ = './segmentation.py'
_sgd = dict(paramwise_cfg=dict(custom_keys={'neck': dict(lr_mult=10.0)}))
_groups = ('head', 'prompts', 'biases', 'prompts_and_biases', 'patch_embed')
# Full tuning has a schedule of its own: vpt/upernet_vit-{b,l}_full_ade20k.py.
optim = dict(all=None, **{group: _sgd for group in _groups})
