# AdamW at 2e-5, ten times that for the head and for what is added to the backbone, as the authors
# of ZegCLIP have it (https://github.com/ZiqinZhou66/ZegCLIP).
_adamw = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-5, weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys={
            'head': dict(lr_mult=10.0),
            'prompt': dict(lr_mult=10.0),
            'adapters': dict(lr_mult=10.0),
        }
    ),
)
optim = dict(
    head=_adamw,
    prompts=_adamw,
    prompt_layers=_adamw,
    patch_embed=_adamw,
    prompts_and_biases=_adamw,
    biases=_adamw,
    all=_adamw,
    adapters=_adamw,
    prompts_and_adapters=_adamw,
    blocks=_adamw,
)
