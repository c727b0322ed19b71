# ViT-H/14, supervised on ImageNet-21k (https://arxiv.org/abs/2010.11929; AugReg has no ViT-H). A
# classifier reads the cls token.
pretrained = dict(
    backbone=dict(
        arch='huge',
        patch_size=14,
        interpolate_mode='bicubic',
        init_cfg=dict(type='Pretrained', checkpoint='timm://vit_huge_patch14_224.orig_in21k'),
    ),
    classifier=dict(img_size=224),
    data_preprocessor=dict(
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
    ),
)
