# PMT's decoder (arXiv 2603.25398) for instances on a plain ViT-B: maps of four blocks, 200 queries,
# six further blocks. The head normalises the tokens itself, hence no final norm.
_base_ = './eomt-instance_vit-b.py'
model = dict(
    backbone=dict(final_norm=False, out_indices=[2, 5, 8, 11]),
    panoptic_head=dict(
        _delete_=True,
        type='vpt_dense.PlainMaskInstanceHead',
        in_channels=[768, 768, 768, 768],
        in_index=[0, 1, 2, 3],
        num_things_classes=80,
        num_heads=12,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        num_queries=200,
        num_blocks=6,
        hidden_dims=1024,
        num_upscalings=2,
    ),
)
