# DINOv2's optimizer for linear heads, whatever trains of the backbone.
_adamw = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, weight_decay=0.0001),
)
optim = dict(
    head=_adamw,
    prompts=_adamw,
    biases=_adamw,
    prompts_and_biases=_adamw,
    patch_embed=_adamw,
    all=_adamw,
    prompt_layers=_adamw,
    adapters=_adamw,
    prompts_and_adapters=_adamw,
    blocks=_adamw,
)
