# ViT-L/16, supervised on ImageNet-21k, then on ImageNet-1k at 384x384: the start of SETR
# (https://arxiv.org/abs/2012.15840), in timm 0.x `vit_large_patch16_384`. Its mean and std are
# those that it was trained with; SETR's runs used ImageNet's.
pretrained = dict(
    backbone=dict(
        arch='large',
        patch_size=16,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/rwightman/pytorch-image-models/releases/download/'
            'v0.1-vitjx/jx_vit_large_p16_384-b3be5167.pth',
        ),
    ),
    classifier=dict(img_size=384),
    data_preprocessor=dict(
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
    ),
)
