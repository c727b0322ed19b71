# Segmenter's linear baseline on ViT-B/16, as in mmseg: one linear layer on every patch token.
_base_ = './segmenter_vit-b.py'
model = dict(
    decode_head=dict(
        _delete_=True,
        type='vpt_dense.FCNHead',
        in_channels=768,
        in_index=0,
        channels=768,
        num_convs=0,
        concat_input=False,
        num_classes=150,
        dropout_ratio=0.0,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
