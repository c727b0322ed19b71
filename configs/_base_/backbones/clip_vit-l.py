# Image tower of OpenAI's CLIP ViT-L/14 (https://arxiv.org/abs/2103.00020) without its projection. A
# classifier reads the cls token after the final norm.
pretrained = dict(
    backbone=dict(
        arch='large',
        patch_size=14,
        pre_norm=True,
        norm_cfg=dict(type='LN', eps=1e-5),
        layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')),
        interpolate_mode='bicubic',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='timm://vit_large_patch14_clip_quickgelu_224.openai',
        ),
    ),
    classifier=dict(img_size=224),
    data_preprocessor=dict(
        mean=[122.7709383, 116.7460125, 104.09373615],
        std=[68.5005327, 66.6321579, 70.32316305],
    ),
)
