# AdamW, one rate for the heads and the pyramid, which start at random, and one by the kind of what
# trains in the backbone.


def _rates(lr):
    return dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05),
        clip_grad=dict(max_norm=10.0),
        paramwise_cfg=dict(
            norm_decay_mult=0.0,
            custom_keys=dict(head=dict(lr_mult=0.0003 / lr), neck=dict(lr_mult=0.0003 / lr)),
        ),
    )


optim = dict(
    head=_rates(0.0003), prompts=_rates(0.003), prompt_layers=_rates(0.001),
    adapters=_rates(0.001), prompts_and_adapters=_rates(0.001), biases=_rates(0.001),
    prompts_and_biases=_rates(0.001), patch_embed=_rates(0.001), blocks=_rates(0.0001),
    all=_rates(0.00003),
)
