# Faster R-CNN (https://arxiv.org/abs/1506.01497) on the four stages of Swin-T, mmdet's FPN.
_base_ = './faster-rcnn_vit-b.py'
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        _delete_=True,
        type='vpt_dense.SwinTransformer',
        arch='tiny',
        img_size=(1024, 1024),
        window_size=7,
        pad_small_map=True,
        drop_path_rate=0.2,  # acts where the whole backbone trains
        out_indices=(0, 1, 2, 3),
        # ImageNet-22k at 224x224. The weights hold the norm of the last stage alone; those of the
        # other three outputs are new, so the recipes list all four in `also_trainable`.
        init_cfg=dict(
            type='Pretrained',
            checkpoint='timm://swin_tiny_patch4_window7_224.ms_in22k',
            allow_missing=[r'^norm[012]\.'],
        ),
    ),
    neck=dict(
        _delete_=True, type='FPN', in_channels=[96, 192, 384, 768], out_channels=256, num_outs=5
    ),
    rpn_head=dict(anchor_generator=dict(strides=[4, 8, 16, 32, 64])),
    roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[4, 8, 16, 32])),
)
