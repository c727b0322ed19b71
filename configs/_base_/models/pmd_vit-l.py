# PMT's decoder (arXiv 2603.25398) on ViT-L: maps of four blocks, 100 queries, six further blocks.
# The head normalises the tokens itself, hence no final norm.
_base_ = './linear_vit-l.py'
model = dict(
    backbone=dict(out_indices=[5, 11, 17, 23]),
    decode_head=dict(
        _delete_=True,
        type='vpt_dense.PlainMaskHead',
        in_channels=[1024, 1024, 1024, 1024],
        in_index=[0, 1, 2, 3],
        num_classes=150,
        num_heads=16,
        norm_cfg=_base_.norm_cfg,
        num_queries=100,
        num_blocks=6,
        hidden_dims=1024,
        num_upscalings=2,
    ),
)
