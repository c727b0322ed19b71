# The optimizer for each group of methods on CLIP: SGD as in CoOp (https://arxiv.org/abs/2109.01134,
# and its code for momentum and decay), AdamW for what is no prompt.
_sgd = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.002, momentum=0.9, weight_decay=0.0005),
)
_adamw = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, weight_decay=0.0001),
)
optim = dict(
    head=_sgd,
    prompts=_sgd,
    prompt_layers=_sgd,
    patch_embed=_sgd,
    prompts_and_biases=_sgd,
    biases=_adamw,
    all=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-5, weight_decay=0.0001)),
    adapters=_adamw,
    prompts_and_adapters=_adamw,
    blocks=_adamw,
)
