# Depth by a linear head on ViT-L: batch norm and a 1x1 convolution on the patch tokens of the last
# block, the class token beside each, to 256 bins from 1 mm to 10 m, upsampled four times; as DINOv2
# is evaluated (https://arxiv.org/abs/2304.07193, section 7.4). The head normalises the tokens
# itself, hence no final norm. Meant for a named backbone (configs/_base_/backbones).
_base_ = './encoder_vit-l.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='vpt_dense.DepthEstimator',
    data_preprocessor=dict(seg_pad_val=0, size=(416, 544)),  # 0: no depth
    backbone=dict(img_size=(416, 544), out_type='raw'),
    depth_head=dict(
        type='vpt_dense.LinearDepthHead',
        in_channels=1024,
        in_index=0,
        cls_token=True,
        min_depth=0.001,
        max_depth=10.0,
        dropout_ratio=0.0,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=[
            dict(type='vpt_dense.SigLoss', warm_up=100),
            dict(type='vpt_dense.GradientLoss', loss_weight=0.5),
        ],
    ),
    test_cfg=dict(mode='whole'),
)
