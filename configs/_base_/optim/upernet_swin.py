# Full tuning: mmseg's optimizer for Swin.
_base_ = './segmentation.py'
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
