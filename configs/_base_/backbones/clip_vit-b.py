# Image tower of OpenAI's CLIP ViT-B/16 (https://arxiv.org/abs/2103.00020) without its projection. A
# classifier reads the cls token after the final norm.
pretrained = dict(
    backbone=dict(
        arch='base',
        patch_size=16,
        pre_norm=True,
        norm_cfg=dict(type='LN', eps=1e-5),
        layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')),
        interpolate_mode='bicubic',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='timm://vit_base_patch16_clip_quickgelu_224.openai',
        ),
    ),
    classifier=dict(img_size=224),
    data_preprocessor=dict(
        mean=[122.7709383, 116.7460125, 104.09373615],
        std=[68.5005327, 66.6321579, 70.32316305],
    ),
)
