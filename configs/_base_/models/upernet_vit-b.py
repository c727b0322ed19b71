# UperNet (https://arxiv.org/abs/1807.10221) on ViT-B/16. The outputs of the blocks at 1/4, 2/4, 3/4
# and 4/4 of the depth become a pyramid of strides 4, 8, 16 and 32 (mmseg's neck of BEiT and MAE);
# an auxiliary FCN head on the third while training. The heads are mmseg's, with a loss that takes
# less memory (vpt_dense/heads): same parameters, same results.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='vpt_dense.EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],  # as in setr-pup_vit-l.py
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    backbone=dict(
        type='vpt_dense.VisionTransformer',
        arch='base',
        img_size=(512, 512),
        patch_size=16,
        out_type='featmap',
        out_indices=[2, 5, 8, 11],
        final_norm=False,
        interpolate_mode='bicubic',
        # ViT-B/16 of timm 0.x `vit_base_patch16_384`: ImageNet-21k, then ImageNet-1k at 384 px.
        # https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/jx_vit_base_p16_384-83fb41ba.pth
        init_cfg=dict(type='Pretrained', checkpoint='pretrain/jx_vit_base_p16_384-83fb41ba.pth'),
    ),
    neck=dict(
        type='Feature2Pyramid', embed_dim=768, rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg
    ),
    decode_head=dict(
        type='vpt_dense.UPerHead',
        in_channels=[768, 768, 768, 768],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='vpt_dense.FCNHead',
        in_channels=768,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        log_accuracy=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
