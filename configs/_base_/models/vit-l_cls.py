# ViT-L/16 with a linear head on the class token, 224x224.
_base_ = './vit-b_cls.py'
model = dict(
    backbone=dict(
        arch='large',
        # ViT-L/16 on ImageNet-21k, supervised. Save as the name below:
        # https://huggingface.co/timm/vit_large_patch16_224.orig_in21k/resolve/main/model.safetensors
        init_cfg=dict(checkpoint='pretrain/vit_large_patch16_224.orig_in21k.safetensors'),
    ),
    head=dict(in_channels=1024),
)
