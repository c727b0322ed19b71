# As camvid_dinov2-s.py with EoMT: 50 queries join the last three blocks; 60 iterations.
_base_ = './camvid_dinov2-s.py'
iters = 60
warmup = 6
train_cfg = dict(val_interval=60)
default_hooks = dict(checkpoint=dict(interval=60))
model = dict(
    backbone=dict(final_norm=True),
    decode_head=dict(
        _delete_=True,
        type='vpt_dense.EoMTHead',
        in_channels=384,
        num_classes=11,
        num_queries=50,
        num_blocks=3,
        num_upscalings=1,
        num_points=2048,
    ))


def _rates(lr):
    return dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=lr, weight_decay=0.0001),
        paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=0.001 / lr))))


optim = dict(
    head=_rates(0.001), prompts=_rates(0.01), adapters=_rates(0.003), all=_rates(0.0001))
