# LingBot-Vision ViT-L/16 (https://arxiv.org/abs/2607.05247): DINOv3's architecture, under
# Apache-2.0. Trained last at 512x512; images of any multiple of 16. A classifier reads the cls
# token.
pretrained = dict(
    backbone=dict(
        type='vpt_dense.TimmVisionTransformer',
        model='vit_large_patch16_lingbot',
        norm_outputs=True,  # every map goes through the last norm, as the authors read them
        init_cfg=dict(type='Pretrained', checkpoint='timm://vit_large_patch16_lingbot.robbyant'),
    ),
    classifier=dict(img_size=512),
)
