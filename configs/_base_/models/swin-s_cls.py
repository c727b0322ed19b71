# Swin-S, see swin-b_cls.py.
_base_ = './swin-b_cls.py'
model = dict(
    backbone=dict(
        arch='small', init_cfg=dict(checkpoint='timm://swin_small_patch4_window7_224.ms_in22k')
    ),
    head=dict(in_channels=768),
)
