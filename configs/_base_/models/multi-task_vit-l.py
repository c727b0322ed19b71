# Several tasks on one ViT-L, a linear head each (batch norm and a 1x1 convolution on the patch
# tokens of the last block, as linear_vit-l.py). `head` has what a task needs of each kind; a recipe
# says which tasks there are: docs/multi-task-training.md. Meant for a named backbone.
_base_ = './encoder_vit-l.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
_linear = dict(
    in_channels=1024, in_index=0, dropout_ratio=0.0, norm_cfg=norm_cfg, align_corners=False)
task_head = dict(
    classes=dict(
        type='vpt_dense.LinearHead', **_linear,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False)),
    edges=dict(
        type='vpt_dense.LinearEdgeHead', **_linear,
        loss_decode=dict(type='vpt_dense.EdgeLoss', weight=0.95)),
    distance=dict(
        type='vpt_dense.LinearDistanceHead', **_linear,
        loss_decode=dict(type='vpt_dense.MapL1Loss')),
    depth=dict(
        type='vpt_dense.LinearDepthHead', **_linear,
        loss_decode=dict(type='vpt_dense.MapL1Loss')),
    normals=dict(
        type='vpt_dense.LinearNormalHead', **_linear,
        loss_decode=dict(type='vpt_dense.NormalLoss', kind='cosine')),
)
model = dict(
    type='vpt_dense.MultiTaskEstimator',
    weighting=dict(kind='fixed'),
    test_cfg=dict(mode='whole'),
)
