# EoMT (https://arxiv.org/abs/2503.19108) on ViT-L: 100 queries join the last four blocks and leave
# through the encoder's last norm, with the patches.
_base_ = './linear_vit-l.py'
model = dict(
    backbone=dict(final_norm=True),
    decode_head=dict(
        _delete_=True,
        type='vpt_dense.EoMTHead',
        in_channels=1024,
        num_classes=150,
        num_queries=100,
        num_blocks=4,
        num_upscalings=2,
    ),
)
