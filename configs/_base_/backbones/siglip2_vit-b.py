# SigLIP 2 ViT-B/16 (https://arxiv.org/abs/2502.14786), images and texts, under Apache-2.0; no cls
# token. Segmentation takes the weights of 512x512. A classifier takes those of 256x256, and reads
# what attention pools.
pretrained = dict(
    backbone=dict(
        type='vpt_dense.TimmVisionTransformer',
        model='vit_base_patch16_siglip_512',
        init_cfg=dict(type='Pretrained', checkpoint='timm://vit_base_patch16_siglip_512.v2_webli'),
    ),
    classifier=dict(
        model='vit_base_patch16_siglip_256',
        init_cfg=dict(checkpoint='timm://vit_base_patch16_siglip_256.v2_webli'),
        img_size=256,
        out_type='pooled',
    ),
)
