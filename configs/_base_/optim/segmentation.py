# The optimizer for each group of methods (`optim_group` in _base_/methods), by what trains of the
# backbone.

# mmseg's for SETR: SGD at 1e-3 without weight decay, ten times that for the heads.
_sgd = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.001, momentum=0.9, weight_decay=0.0),
    paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.0)}),
    clip_grad=None,
)
# 1e-3 and little weight decay, for the backbone and the heads alike.
_adamw = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, weight_decay=0.0001),
)
optim = dict(
    head=_sgd,
    prompts=_sgd,
    biases=_sgd,
    prompts_and_biases=_sgd,
    patch_embed=_sgd,
    all=_sgd,
    prompt_layers=_adamw,  # prompts that layers or gates make, keys and values
    adapters=_adamw,
    prompts_and_adapters=_adamw,
    blocks=_adamw,
)
