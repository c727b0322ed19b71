# ResNet-50, the mean over its last map, a linear head, 224x224.
_base_ = './vit-b_cls.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='vpt_dense.ResNet',
        depth=50,
        img_size=224,
        # ResNet-50 on ImageNet-1k, supervised: torchvision's first weights. Save as the name below:
        # https://download.pytorch.org/models/resnet50-0676ba61.pth
        init_cfg=dict(type='Pretrained', checkpoint='pretrain/resnet50-0676ba61.pth'),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(in_channels=2048),
)
