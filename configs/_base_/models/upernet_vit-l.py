# UperNet on ViT-L/16, see upernet_vit-b.py.
_base_ = './upernet_vit-b.py'
model = dict(
    backbone=dict(
        arch='large',
        out_indices=[5, 11, 17, 23],
        # As in setr-pup_vit-l.py.
        init_cfg=dict(checkpoint='pretrain/jx_vit_large_p16_384-b3be5167.pth'),
    ),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024]),
    auxiliary_head=dict(in_channels=1024),
)
