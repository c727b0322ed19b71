# Normals of surfaces by a linear head on the patch tokens of the last block of ViT-L: batch norm
# and a 1x1 convolution to three channels, upsampled four times and divided by their length. The
# head normalises the tokens itself, hence no final norm. Meant for a named backbone
# (configs/_base_/backbones).
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='vpt_dense.NormalEstimator',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=0,  # no normal
        size=(512, 512),
    ),
    backbone=dict(
        type='vpt_dense.VisionTransformer',
        arch='large',
        img_size=(512, 512),
        patch_size=16,
        out_type='featmap',
        out_indices=[23],
        final_norm=False,
        interpolate_mode='bicubic',
        # As in setr-pup_vit-l.py.
        init_cfg=dict(type='Pretrained', checkpoint='pretrain/jx_vit_large_p16_384-b3be5167.pth'),
    ),
    normal_head=dict(
        type='vpt_dense.LinearNormalHead',
        in_channels=1024,
        in_index=0,
        dropout_ratio=0.0,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='vpt_dense.NormalLoss', kind='cosine'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
