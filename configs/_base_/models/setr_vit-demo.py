# SETR on the small ViT that comes with the repository (2.7 M parameters, patches of 8 pixels,
# images of 96x96, so 144 tokens). pretrain/README.md tells how it was made.
norm_cfg = dict(type='BN', requires_grad=True)
_head = dict(
    type='vpt_dense.SETRUPHead',
    in_channels=192,
    num_classes=11,
    dropout_ratio=0,
    norm_cfg=norm_cfg,
    up_scale=2,
    kernel_size=3,
    align_corners=False,
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(96, 96),
    ),
    backbone=dict(
        type='vpt_dense.PromptedVisionTransformer',
        arch=dict(embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768),
        img_size=(96, 96),
        patch_size=8,
        out_type='featmap',
        out_indices=[2, 5],
        init_cfg=dict(type='Pretrained', checkpoint='pretrain/vit-demo_formula.safetensors'),
    ),
    decode_head=dict(
        **_head,
        in_index=1,
        channels=64,
        num_convs=2,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=[
        dict(
            **_head,
            in_index=0,
            channels=32,
            num_convs=1,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        )
    ],
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
