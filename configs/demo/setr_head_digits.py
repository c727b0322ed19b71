# SETR on the small ViT of this repository, digits: head-only.
_base_ = ['./_setr_digits.py', '../_base_/tuning/head.py']
model = dict(backbone=_base_.tuning)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.004, weight_decay=1e-4),
)
