# SETR on the small ViT of this repository, digits. The background covers four fifths of the pixels:
# it weighs less, or a short training stays there.
_base_ = [
    '../_base_/models/setr_vit-demo.py',
    '../_base_/datasets/digits_96.py',
    '../_base_/schedules/demo.py',
    '../_base_/default_runtime.py',
]
model = dict(
    decode_head=dict(loss_decode=dict(class_weight=[0.3] + [1.0] * 10)),
)

# AdamW, for the head at 0.004, for what trains of the backbone at a multiple of that. Prompts and
# other lone tensors take large steps, biases, norms and adapters, on which many tokens act, smaller
# ones, the weights of blocks and of other networks small ones.
_adamw = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.004, weight_decay=1e-4),
)
_prompts, _adapters, _blocks = (dict(lr_mult=factor) for factor in (2.5, 0.75, 0.075))
_of_prompts = dict(_adamw, paramwise_cfg=dict(custom_keys={'backbone': _prompts}))
_of_adapters = dict(_adamw, paramwise_cfg=dict(custom_keys={'backbone': _adapters}))
_of_both = dict(
    _adamw,
    paramwise_cfg=dict(custom_keys={'backbone': _adapters, 'backbone.prompt': _prompts}),
)
_of_blocks = dict(_adamw, paramwise_cfg=dict(custom_keys={'backbone': _blocks}))
optim = dict(
    head=_adamw,
    prompts=_of_prompts,
    prompt_layers=_of_prompts,
    biases=_of_adapters,
    adapters=_of_adapters,
    prompts_and_biases=_of_both,
    prompts_and_adapters=_of_both,
    blocks=_of_blocks,
    all=_of_blocks,
    patch_embed=dict(
        _adamw,
        paramwise_cfg=dict(custom_keys={'backbone': _blocks, 'backbone.image_prompt': _prompts}),
    ),
)
