# PAE whose start looks at 16 images through fewer windows: for small machines.
_base_ = '../../_base_/methods/pae.py'
method_hooks = [
    dict(type='vpt_dense.PromptLossHook'),
    dict(type='vpt_dense.PromptStartHook', source='frequencies', max_images=16, seed=0, window=16,
         stride=24)]
