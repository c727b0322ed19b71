# UperNet with a feature pyramid, ViT-B/16, ADE20K: full fine-tuning.
_base_ = [
    '../_base_/models/upernet_vit-b.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/160k_warmup.py',
    '../_base_/default_runtime.py',
    '../_base_/methods/full.py',
]
model = dict(backbone=_base_.method)
# mmseg's optimizer for UperNet on a ViT; '.ln' are its norms.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.00006, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys={
            'pos_embed': dict(decay_mult=0.0),
            'cls_token': dict(decay_mult=0.0),
            '.ln': dict(decay_mult=0.0),
        }
    ),
)
