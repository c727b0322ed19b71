# Encoder of MAE (https://arxiv.org/abs/2111.06377), ViT-L/16, ImageNet-1k without labels. As the
# authors fine-tune it, a classifier reads the mean of the patch tokens through a new norm (their
# `fc_norm`, here `ln2`), which the weights do not hold; the pretrained final norm is left out.
pretrained = dict(
    backbone=dict(
        arch='large',
        patch_size=16,
        interpolate_mode='bicubic',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_large.pth',
        ),
    ),
    classifier=dict(
        img_size=224,
        out_type='avg_featmap',
        final_norm=False,
        init_cfg=dict(allow_missing=[r'^ln2\.']),
    ),
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
    ),
)
