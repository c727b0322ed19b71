# TIPSv2 ViT-B/14 with one register, images and texts, under Apache-2.0. Trained last at 448x448;
# images of any multiple of 14. A classifier reads the cls token.
pretrained = dict(
    backbone=dict(
        type='vpt_dense.TimmVisionTransformer',
        model='vit_base_patch14_reg1_tipsv2',
        norm_outputs=True,  # every map goes through the last norm, as the authors read them
        init_cfg=dict(type='Pretrained', checkpoint='timm://vit_base_patch14_reg1_tipsv2.webli'),
    ),
    classifier=dict(img_size=448),
)
