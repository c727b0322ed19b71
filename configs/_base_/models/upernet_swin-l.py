# UperNet on Swin-L with windows of 7, see upernet_swin-b.py.
_base_ = './upernet_swin-b.py'
model = dict(
    backbone=dict(
        arch='large', init_cfg=dict(checkpoint='timm://swin_large_patch4_window7_224.ms_in22k')
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
