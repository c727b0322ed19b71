# ViT-B/16 of MoCo v3 (https://arxiv.org/abs/2104.02057), ImageNet-1k without labels, 300 epochs. A
# classifier reads the cls token after the final norm, as the authors' does.
pretrained = dict(
    backbone=dict(
        arch='base',
        patch_size=16,
        interpolate_mode='bicubic',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar',
        ),
    ),
    classifier=dict(img_size=224),
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
    ),
)
