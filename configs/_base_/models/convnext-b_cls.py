# ConvNeXt-B, the mean over its last map through the final norm, a linear head, 224x224.
_base_ = './vit-b_cls.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='vpt_dense.ConvNeXt',
        arch='base',
        img_size=224,
        # ConvNeXt-B on ImageNet-22k, supervised: the authors'. Save as the name below:
        # https://dl.fbaipublicfiles.com/convnext/convnext_base_22k_224.pth
        init_cfg=dict(type='Pretrained', checkpoint='pretrain/convnext_base_22k_224.pth'),
    ),
    head=dict(in_channels=1024),
)
