# Segmenter (https://arxiv.org/abs/2105.05633) on ViT-B/16, as in mmseg: two transformer blocks on
# patch tokens and one token a class; a mask is the cosine similarity of the patches to its class.
# The head is mmseg's, with a loss that takes less memory (vpt_dense/heads): same results.
model = dict(
    type='vpt_dense.EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5, 127.5, 127.5],  # those of the weights
        std=[127.5, 127.5, 127.5],
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
        out_indices=[11],
        final_norm=True,
        drop_path_rate=0.1,  # acts where everything trains
        interpolate_mode='bicubic',
        # The recipe of https://arxiv.org/abs/2106.10270: ImageNet-21k, ImageNet-1k at 384 pixels.
        init_cfg=dict(
            type='Pretrained', checkpoint='timm://vit_base_patch16_384.augreg_in21k_ft_in1k'
        ),
    ),
    decode_head=dict(
        type='vpt_dense.SegmenterMaskTransformerHead',
        in_channels=768,
        in_index=0,
        channels=768,
        num_classes=150,
        num_layers=2,
        num_heads=12,
        embed_dims=768,
        dropout_ratio=0.0,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(480, 480)),
)
