# AdamW, 1e-2 for the head, for what trains in the backbone by its kind. A few runs on CamVid set
# these rates. Of the searches in docs/results.md, two decades around each, most found a third to
# three times as much; LayerNorm and VPT-shallow ten times, 50 prompts and all weights a sixth.


def _rates(lr):
    return dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=lr, weight_decay=0.0001),
        paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=0.01 / lr))))


optim = dict(
    head=_rates(0.01), prompts=_rates(0.01), prompt_layers=_rates(0.003),
    adapters=_rates(0.003), prompts_and_adapters=_rates(0.003), biases=_rates(0.003),
    prompts_and_biases=_rates(0.003), patch_embed=_rates(0.003), blocks=_rates(0.0003),
    all=_rates(0.0001),
)
