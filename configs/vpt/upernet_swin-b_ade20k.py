# UperNet, Swin-B, ADE20K.
_base_ = [
    '../_base_/models/upernet_swin-b.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/schedules/160k_warmup.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/segmentation.py',
]
# The norms of the outputs, which no pretrained weights hold.
also_trainable = [r'^norm\d\.']
# mmseg's optimizer for Swin.
optim = dict(
    all=dict(
        _delete_=True,
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=0.00006, betas=(0.9, 0.999), weight_decay=0.01),
        paramwise_cfg=dict(
            custom_keys={
                'absolute_pos_embed': dict(decay_mult=0.0),
                'relative_position_bias_table': dict(decay_mult=0.0),
                'norm': dict(decay_mult=0.0),
            }
        ),
    )
)
