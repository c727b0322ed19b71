# ViT-B/16 with a linear head on the class token, 224x224.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[123.675, 116.28, 103.53],  # ImageNet's, as in the paper
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='vpt_dense.VisionTransformer',
        arch='base',
        img_size=224,
        patch_size=16,
        out_type='cls_token',
        # ViT-B/16 on ImageNet-21k, supervised: timm's conversion of the file that the paper starts
        # from (vit_models/imagenet21k/ViT-B_16.npz). Save as the name below:
        # https://huggingface.co/timm/vit_base_patch16_224.orig_in21k/resolve/main/model.safetensors
        # (The later AugReg weights, .augreg_in21k at the same place, load too; they were trained
        # with mean = std = 127.5.)
        init_cfg=dict(
            type='Pretrained', checkpoint='pretrain/vit_base_patch16_224.orig_in21k.safetensors'
        ),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,  # set from the classes of the data
        in_channels=768,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        # -log(99): every class starts at a probability of 0.01.
        init_cfg=dict(
            type='Kaiming', layer='Linear', mode='fan_out', nonlinearity='relu', bias=-4.59511985
        ),
    ),
)
