# AdamW for EoMT on DINOv3 as its authors have it: 2e-4 for queries and head, a tenth of that for
# the encoder, weight decay 0.05. What else trains of the backbone has the rates of adamw.py.


def _rates(lr):
    return dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05),
        paramwise_cfg=dict(
            norm_decay_mult=0.0, custom_keys=dict(head=dict(lr_mult=0.0002 / lr))))


optim = dict(
    head=_rates(0.0002), prompts=_rates(0.01), prompt_layers=_rates(0.003),
    adapters=_rates(0.003), prompts_and_adapters=_rates(0.003), biases=_rates(0.003),
    prompts_and_biases=_rates(0.003), patch_embed=_rates(0.003), blocks=_rates(0.00002),
    all=_rates(0.00002),
)
