# Mask2Former (https://arxiv.org/abs/2112.01527) for things and stuff, on a plain ViT: as for
# instances. How many classes are things follows the data.
_base_ = './mask2former_vit-b.py'
model = dict(
    data_preprocessor=dict(pad_seg=True, seg_pad_value=255),
    panoptic_head=dict(
        num_things_classes=80,
        num_stuff_classes=53,
        loss_cls=dict(class_weight=[1.0] * 133 + [0.1]),
    ),
    panoptic_fusion_head=dict(num_things_classes=80, num_stuff_classes=53),
    test_cfg=dict(panoptic_on=True, instance_on=False, object_mask_thr=0.8),
)
