# What detectors on a plain ViT-B have in common. Padding that is None follows the patches.
model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],  # as in setr-pup_vit-l.py
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=None,
    ),
    backbone=dict(
        type='vpt_dense.VisionTransformer',
        arch='base',
        img_size=(1024, 1024),
        patch_size=16,
        out_type='featmap',
        out_indices=[11],
        interpolate_mode='bicubic',
        # As in upernet_vit-b.py.
        init_cfg=dict(type='Pretrained', checkpoint='pretrain/jx_vit_base_p16_384-83fb41ba.pth'),
    ),
)
