# ViT-L/16, supervised on ImageNet-21k with the recipe of "How to train your ViT?"
# (https://arxiv.org/abs/2106.10270). A classifier reads the cls token.
pretrained = dict(
    backbone=dict(
        arch='large',
        patch_size=16,
        interpolate_mode='bicubic',
        init_cfg=dict(type='Pretrained', checkpoint='timm://vit_large_patch16_224.augreg_in21k'),
    ),
    classifier=dict(img_size=224),
    data_preprocessor=dict(
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
    ),
)
