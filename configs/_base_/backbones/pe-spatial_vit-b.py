# Perception Encoder, spatial, ViT-B/16 (https://arxiv.org/abs/2504.13181), under Apache-2.0;
# position embedding and rotary positions. Trained last at 512x512; images of any multiple of 16. A
# classifier reads the cls token.
pretrained = dict(
    backbone=dict(
        type='vpt_dense.TimmVisionTransformer',
        model='vit_pe_spatial_base_patch16_512',
        init_cfg=dict(type='Pretrained', checkpoint='timm://vit_pe_spatial_base_patch16_512.fb'),
    ),
    classifier=dict(img_size=512),
)
