# ViT-B/16 of DeiT III (https://arxiv.org/abs/2204.07118), ImageNet-21k, then ImageNet-1k. Its cls
# token has no position: that row of the position embedding starts at zero. A classifier reads
# the cls token.
pretrained = dict(
    backbone=dict(
        arch='base',
        patch_size=16,
        layer_scale_init_value=1e-6,
        interpolate_mode='bicubic',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='timm://deit3_base_patch16_224.fb_in22k_ft_in1k',
        ),
    ),
    classifier=dict(img_size=224),
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
    ),
)
