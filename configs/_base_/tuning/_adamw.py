# Adapters, and prompts that train with AdamW: 1e-3 and little weight decay, for the backbone and
# the head alike. Classification scales the rate by the images of a step / 256 (cls_100e.py).
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, weight_decay=0.0001),
)
