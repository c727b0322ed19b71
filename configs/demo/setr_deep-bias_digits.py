# SETR on the small ViT of this repository, digits: VPT-deep and biases.
_base_ = ['./_setr_digits.py', '../_base_/tuning/deep-bias.py']
_prompt = dict(_base_.tuning.prompt, num_tokens=20, dropout=0.0)
model = dict(backbone=dict(_base_.tuning, prompt=_prompt))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.004, weight_decay=1e-4),
    paramwise_cfg=dict(
        custom_keys={'backbone': dict(lr_mult=0.75), 'backbone.prompt': dict(lr_mult=2.5)}
    ),
)
