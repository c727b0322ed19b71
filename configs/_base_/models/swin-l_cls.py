# Swin-L, see swin-b_cls.py.
_base_ = './swin-b_cls.py'
model = dict(
    backbone=dict(
        arch='large', init_cfg=dict(checkpoint='timm://swin_large_patch4_window7_224.ms_in22k')
    ),
    head=dict(in_channels=1536),
)
