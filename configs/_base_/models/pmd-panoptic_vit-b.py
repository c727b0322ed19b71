# PMT's decoder (arXiv 2603.25398) for things and stuff on a plain ViT-B, as for instances.
_base_ = './pmd-instance_vit-b.py'
model = dict(
    data_preprocessor=dict(pad_seg=True, seg_pad_value=255),
    panoptic_head=dict(type='vpt_dense.PlainMaskPanopticHead', num_stuff_classes=53),
    panoptic_fusion_head=dict(num_stuff_classes=53),
    test_cfg=dict(
        panoptic_on=True,
        instance_on=False,
        object_mask_thr=0.8,
        iou_thr=0.8,
        filter_low_score=True,
    ),
)
