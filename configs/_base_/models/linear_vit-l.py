# A linear head on ViT-L: batch norm and a 1x1 convolution on the patch tokens of the last block, as
# DINOv2 is evaluated (https://arxiv.org/abs/2304.07193, section 7.4). The head normalises the
# tokens itself, hence no final norm. Meant for a named backbone (configs/_base_/backbones).
_base_ = './encoder_vit-l.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='vpt_dense.EncoderDecoder',
    decode_head=dict(
        type='vpt_dense.LinearHead',
        in_channels=1024,
        in_index=0,
        num_classes=150,
        dropout_ratio=0.0,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
