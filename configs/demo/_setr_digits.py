# What the leaves of this folder share. The background covers four fifths of the pixels: it weighs
# less, or a short training stays there.
_base_ = [
    '../_base_/models/setr_vit-demo.py',
    '../_base_/datasets/digits_96.py',
    '../_base_/schedules/demo.py',
    '../_base_/default_runtime.py',
]
model = dict(
    decode_head=dict(loss_decode=dict(class_weight=[0.3] + [1.0] * 10)),
)

# The groups of the methods in this folder, by what trains beside the head: AdamW, for the head at
# 0.004, for the backbone part at a multiple of that. Prompts and other lone tensors take large
# steps, biases, norms and adapters, on which many tokens act, smaller ones, the weights of blocks
# and of other networks small ones.
_adamw = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.004, weight_decay=1e-4),
)
_prompts, _adapters, _blocks = (dict(lr_mult=factor) for factor in (2.5, 0.75, 0.075))
demo_optim = dict(
    head=_adamw,
    prompts=dict(_adamw, paramwise_cfg=dict(custom_keys={'backbone': _prompts})),
    adapters=dict(_adamw, paramwise_cfg=dict(custom_keys={'backbone': _adapters})),
    both=dict(
        _adamw,
        paramwise_cfg=dict(custom_keys={'backbone': _adapters, 'backbone.prompt': _prompts}),
    ),
    blocks=dict(_adamw, paramwise_cfg=dict(custom_keys={'backbone': _blocks})),
    patch_embed=dict(
        _adamw,
        paramwise_cfg=dict(custom_keys={'backbone': _blocks, 'backbone.image_prompt': _prompts}),
    ),
)
