# Swin-B with windows of 7 and a linear head on the mean of the last map, 224x224.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='vpt_dense.SwinTransformer',
        arch='base',
        img_size=224,
        window_size=7,
        drop_path_rate=0.2,  # of Microsoft's fine-tuning; acts where the whole backbone trains
        # ImageNet-22k, supervised: where the paper starts from.
        init_cfg=dict(
            type='Pretrained', checkpoint='timm://swin_base_patch4_window7_224.ms_in22k'
        ),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,  # set from the classes of the data
        in_channels=1024,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        # -log(99): every class starts at a probability of 0.01.
        init_cfg=dict(
            type='Kaiming', layer='Linear', mode='fan_out', nonlinearity='relu', bias=-4.59511985
        ),
    ),
)
