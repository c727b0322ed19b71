# Normals of surfaces by a linear head on the patch tokens of the last block of ViT-L: batch norm
# and a 1x1 convolution to three channels, upsampled four times and divided by their length. The
# head normalises the tokens itself, hence no final norm. Meant for a named backbone
# (configs/_base_/backbones).
_base_ = './encoder_vit-l.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='vpt_dense.NormalEstimator',
    data_preprocessor=dict(seg_pad_val=0),  # no normal
    normal_head=dict(
        type='vpt_dense.LinearNormalHead',
        in_channels=1024,
        in_index=0,
        dropout_ratio=0.0,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='vpt_dense.NormalLoss', kind='cosine'),
    ),
    test_cfg=dict(mode='whole'),
)
