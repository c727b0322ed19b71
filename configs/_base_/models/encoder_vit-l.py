# ViT-L whose last block's patch tokens go to a linear head, which normalises them itself, hence no
# final norm. Meant for a named backbone (configs/_base_/backbones). Models add type, head and test.
model = dict(
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    backbone=dict(
        type='vpt_dense.VisionTransformer',
        arch='large',
        img_size=(512, 512),
        patch_size=16,
        out_type='featmap',
        out_indices=[23],
        final_norm=False,
        interpolate_mode='bicubic',
        # As in setr-pup_vit-l.py.
        init_cfg=dict(type='Pretrained', checkpoint='pretrain/jx_vit_large_p16_384-b3be5167.pth'),
    ),
    train_cfg=dict(),
)
