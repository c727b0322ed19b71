# Mask R-CNN (https://arxiv.org/abs/1703.06870): Faster R-CNN with a head for masks.
_base_ = './faster-rcnn_vit-b.py'
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(pad_mask=True),
    roi_head=dict(
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=None,
        ),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=80,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(rcnn=dict(mask_size=28, assigner=dict(match_low_quality=True))),
    test_cfg=dict(rcnn=dict(mask_thr_binary=0.5)),
)
