# Depth by DPT (https://arxiv.org/abs/2103.13413) on four blocks of ViT-B, evenly spread; bins and
# losses are those of linear-depth_vit-l.py.
_base_ = './linear-depth_vit-l.py'
model = dict(
    backbone=dict(arch='base', out_type='featmap', out_indices=[2, 5, 8, 11]),
    depth_head=dict(
        _delete_=True,
        type='vpt_dense.DPTDepthHead',
        in_channels=[768, 768, 768, 768],
        in_index=[0, 1, 2, 3],
        channels=256,
        post_process_channels=[96, 192, 384, 768],
        readout_type='ignore',
        min_depth=0.001,
        max_depth=10.0,
        dropout_ratio=0.0,
        norm_cfg=None,
        align_corners=False,
        loss_decode=_base_.model.depth_head.loss_decode,
    ),
)
