# SETR-MLA (https://arxiv.org/abs/2012.15840) on ViT-L/16, as in mmseg: the outputs of four blocks
# are aggregated from the top down; the backbone has no cls token.
_base_ = './setr-pup_vit-l.py'
model = dict(
    backbone=dict(out_indices=[5, 11, 17, 23], with_cls_token=False),
    neck=dict(
        type='MLANeck',
        in_channels=[1024, 1024, 1024, 1024],
        out_channels=256,
        norm_cfg=_base_.norm_cfg,
        act_cfg=dict(type='ReLU'),
    ),
    decode_head=dict(
        _delete_=True,
        type='vpt_dense.SETRMLAHead',
        in_channels=(256, 256, 256, 256),
        channels=512,
        in_index=(0, 1, 2, 3),
        dropout_ratio=0,
        mla_channels=128,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=[
        dict(
            type='FCNHead',
            in_channels=256,
            channels=256,
            in_index=i,
            dropout_ratio=0,
            num_convs=0,
            kernel_size=1,
            concat_input=False,
            num_classes=150,
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        )
        for i in range(4)
    ],
)
