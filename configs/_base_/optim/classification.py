# The optimizer for each group of methods (`optim_group` in _base_/methods), by what trains of the
# backbone. The paper (https://arxiv.org/abs/2203.12119) searches the base learning rate (for 256
# images a step, see schedules/cls_100e.py) for each data set; these are middles of its grids.

# {50, 25, 10, 5, 2.5, 1, 0.5, 0.25, 0.1, 0.05}, weight decay {0.01, 0.001, 0.0001, 0}.
_sgd = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1.0, momentum=0.9, weight_decay=0.0001),
)
# {0.005, 0.001, 0.0005, 0.0001}, weight decay {0.01, 0.001, 0.0001, 0}.
_adamw = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, weight_decay=0.0001),
)
optim = dict(
    head=_sgd,
    prompts=_sgd,
    patch_embed=_sgd,
    # Ten times the rate for the head, as in segmentation: biases take small steps.
    prompts_and_biases=dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.001, momentum=0.9, weight_decay=0.0),
        paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.0)}),
        clip_grad=None,
    ),
    biases=_adamw,
    all=_adamw,
    prompt_layers=_adamw,  # prompts that layers or gates make, keys and values
    adapters=_adamw,
    prompts_and_adapters=_adamw,
    blocks=_adamw,
)
