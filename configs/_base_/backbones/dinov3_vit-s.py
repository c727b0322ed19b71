# DINOv3 ViT-S/16 (https://arxiv.org/abs/2508.10104), LVD-1689M without labels; four
# registers, rotary positions: images of any multiple of 16. A classifier reads the cls token. The
# weights have a licence of their own, see docs/backbones.md.
pretrained = dict(
    backbone=dict(
        type='vpt_dense.TimmVisionTransformer',
        model='vit_small_patch16_dinov3',
        norm_outputs=True,  # every map goes through the last norm, as the authors read them
        init_cfg=dict(type='Pretrained', checkpoint='timm://vit_small_patch16_dinov3.lvd1689m'),
    ),
    classifier=dict(img_size=256),
)
