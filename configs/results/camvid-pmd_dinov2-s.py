# As camvid_dinov2-s.py with PMT's decoder, of three blocks and 50 queries, on the maps of four
# blocks; 400 iterations.
_base_ = './camvid_dinov2-s.py'
iters = 400
train_cfg = dict(val_interval=400)
default_hooks = dict(checkpoint=dict(interval=400))
model = dict(
    backbone=dict(out_indices=[2, 5, 8, 11]),
    decode_head=dict(
        _delete_=True,
        type='vpt_dense.PlainMaskHead',
        in_channels=[384, 384, 384, 384],
        in_index=[0, 1, 2, 3],
        num_classes=11,
        num_heads=6,
        norm_cfg=_base_.norm_cfg,
        num_queries=50,
        num_blocks=3,
        hidden_dims=768,
        num_upscalings=1,
        num_points=4096,
    ))


def _rates(lr):
    return dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=lr, weight_decay=0.0001),
        paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=0.0005 / lr))))


optim = dict(head=_rates(0.0005), prompts=_rates(0.01), adapters=_rates(0.003))
