# As camvid_dinov2-s.py with a stronger head, a small SETR-PUP: two 3x3 convolutions of 96 channels,
# each followed by upsampling by 2.
_base_ = './camvid_dinov2-s.py'
model = dict(decode_head=dict(
    _delete_=True,
    type='SETRUPHead',
    in_channels=384,
    channels=96,
    in_index=0,
    num_classes=11,
    dropout_ratio=0.0,
    num_convs=2,
    up_scale=2,
    kernel_size=3,
    norm_cfg=_base_.norm_cfg,
    align_corners=False,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
))
