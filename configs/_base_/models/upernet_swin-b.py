# UperNet (https://arxiv.org/abs/1807.10221) on Swin-B with windows of 7, as in mmseg's Swin for
# ADE20K: the four stages are the pyramid, an auxiliary FCN head on the third while training. The
# heads are mmseg's, with a loss that takes less memory (vpt_dense/heads): same parameters, same
# results.
norm_cfg = dict(type='SyncBN', requires_grad=True)
_head = dict(
    dropout_ratio=0.1,
    num_classes=150,
    norm_cfg=norm_cfg,
    align_corners=False,
)
model = dict(
    type='vpt_dense.EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    backbone=dict(
        type='vpt_dense.SwinTransformer',
        arch='base',
        img_size=(512, 512),
        window_size=7,
        pad_small_map=True,
        drop_path_rate=0.3,  # acts where the whole backbone trains
        out_indices=(0, 1, 2, 3),
        # ImageNet-22k at 224x224. The weights hold the norm of the last stage alone; those of the
        # other three outputs are new, so the leaves list all four in `trainable`.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='timm://swin_base_patch4_window7_224.ms_in22k',
            allow_missing=[r'^norm[012]\.'],
        ),
    ),
    decode_head=dict(
        **_head,
        type='vpt_dense.UPerHead',
        in_channels=[128, 256, 512, 1024],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        **_head,
        type='vpt_dense.FCNHead',
        in_channels=512,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        log_accuracy=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
