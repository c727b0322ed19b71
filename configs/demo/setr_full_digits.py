# SETR on the small ViT of this repository, digits: full fine-tuning.
_base_ = ['./_setr_digits.py', '../_base_/tuning/full.py']
model = dict(backbone=_base_.tuning)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.004, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.075)}),
)
