# Cross visual prompt tuning (https://arxiv.org/abs/2408.14961): behind the attention of every block
# its tokens attend to prompts, with the block's own weights. The number is the paper's for ADE20K.
# Trainable: sum(n * num_tokens * d)
method = dict(
    adapters=[dict(type='vpt_dense.CVPT', num_tokens=200, dropout=0.1)],
    trainable=[r'^adapters\.'],
)
optim_group = 'prompt_layers'
