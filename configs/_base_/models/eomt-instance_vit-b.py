# EoMT (https://arxiv.org/abs/2503.19108) for instances on a plain ViT-B: 200 queries join the last
# three blocks. Padding that is None follows the patches.
_base_ = './detector_vit-b.py'
model = dict(
    type='vpt_dense.QueryDetector',
    data_preprocessor=dict(pad_mask=True),
    backbone=dict(final_norm=True),
    panoptic_head=dict(
        type='vpt_dense.EoMTInstanceHead',
        in_channels=768,
        num_things_classes=80,
        num_queries=200,
        num_blocks=3,
        num_upscalings=2,
    ),
    panoptic_fusion_head=dict(
        type='MaskFormerFusionHead',
        num_things_classes=80,
        num_stuff_classes=0,
        loss_panoptic=None,
        init_cfg=None,
    ),
    test_cfg=dict(panoptic_on=False, semantic_on=False, instance_on=True, max_per_image=100),
)
