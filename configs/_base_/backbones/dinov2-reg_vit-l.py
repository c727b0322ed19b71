# DINOv2 ViT-L/14 with four register tokens (https://arxiv.org/abs/2309.16588), LVD-142M without
# labels. Trained last at 518x518, a grid of 37x37; inputs of any multiple of 14 work. A
# classifier reads the cls token.
pretrained = dict(
    backbone=dict(
        arch='large',
        patch_size=14,
        num_registers=4,
        layer_scale_init_value=1e-5,
        interpolate_mode='bicubic',
        init_cfg=dict(type='Pretrained', checkpoint='timm://vit_large_patch14_reg4_dinov2.lvd142m'),
    ),
    classifier=dict(img_size=518),
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
    ),
)
