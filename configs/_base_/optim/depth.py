# DINOv3's optimizer for depth (https://github.com/facebookresearch/dinov3), whatever trains of the
# backbone.
_adamw = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, weight_decay=0.01),
    clip_grad=dict(max_norm=35, norm_type=2),
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
