# SETR-PUP (https://arxiv.org/abs/2012.15840) on ViT-L/16, as in mmseg's SETR for ADE20K:
# progressive upsampling from the last block, three auxiliary heads on blocks 10, 15 and 20 while
# training. The heads are mmseg's, faster (vpt_dense/heads): same parameters, same results.
norm_cfg = dict(type='SyncBN', requires_grad=True)
_head = dict(
    type='vpt_dense.SETRUPHead',
    in_channels=1024,
    channels=256,
    num_classes=150,
    dropout_ratio=0,
    norm_cfg=norm_cfg,
    kernel_size=3,
    align_corners=False,
)
model = dict(
    type='vpt_dense.EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        # ImageNet's mean and std, as in the published runs. The weights below were trained with
        # 0.5/0.5; to follow them instead: mean=[127.5] * 3, std=[127.5] * 3
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    backbone=dict(
        type='vpt_dense.VisionTransformer',
        arch='large',
        img_size=(512, 512),
        patch_size=16,
        out_type='featmap',
        out_indices=[9, 14, 19, 23],
        final_norm=False,
        interpolate_mode='bilinear',
        # ViT-L/16 of timm 0.x `vit_large_patch16_384`: ImageNet-21k, then ImageNet-1k at 384 px.
        # https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/jx_vit_large_p16_384-b3be5167.pth
        init_cfg=dict(type='Pretrained', checkpoint='pretrain/jx_vit_large_p16_384-b3be5167.pth'),
    ),
    decode_head=dict(
        **_head,
        in_index=3,
        num_convs=4,
        up_scale=2,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=[
        dict(
            **_head,
            in_index=i,
            num_convs=2,
            up_scale=4,
            log_accuracy=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        )
        for i in range(3)
    ],
    train_cfg=dict(),
    # Four windows run together; windows_per_batch=... changes it.
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
