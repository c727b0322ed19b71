# SETR-Naive on the small ViT that comes with the repository (2.7 M parameters, patches of 8 pixels,
# images of 96x96, so 144 tokens). pretrain/README.md tells how it was made.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='vpt_dense.EncoderDecoder',
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
        type='vpt_dense.VisionTransformer',
        arch=dict(embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768),
        img_size=(96, 96),
        patch_size=8,
        out_type='featmap',
        out_indices=[5],
        init_cfg=dict(type='Pretrained', checkpoint='pretrain/vit-demo_formula.safetensors'),
    ),
    # 1x1 convolutions: what surrounds a patch is the backbone's to find out.
    decode_head=dict(
        type='vpt_dense.SETRUPHead',
        in_channels=192,
        in_index=0,
        channels=64,
        num_convs=1,
        up_scale=4,
        kernel_size=1,
        num_classes=11,
        dropout_ratio=0,
        norm_cfg=norm_cfg,
        align_corners=False,
        # mmseg starts it at a standard deviation of 0.01: too slow for a short training.
        init_cfg=dict(type='Normal', std=0.1, override=dict(name='conv_seg')),
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
