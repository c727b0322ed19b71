# AdamW for ViT-Split on ADE20K as its authors have it: 2e-4 (3e-4 on ViT-S), a tenth of that for
# the copied blocks, which the method's file says, weight decay 0.01. What else trains of the
# backbone has the rates of adamw.py.


def _rates(lr):
    return dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=lr, weight_decay=0.01),
        paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=0.0002 / lr))))


optim = dict(
    head=_rates(0.0002), prompts=_rates(0.01), prompt_layers=_rates(0.003),
    adapters=_rates(0.003), prompts_and_adapters=_rates(0.003), biases=_rates(0.003),
    prompts_and_biases=_rates(0.003), patch_embed=_rates(0.003), blocks=_rates(0.0003),
    all=_rates(0.0001),
)
