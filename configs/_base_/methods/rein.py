# Token refinement after every block as in Rein (https://arxiv.org/abs/2312.04265), without its
# queries for a Mask2Former. Sizes and optimizer are the authors': tokens and scale do not decay.
# Trainable: sum((n - unread) * (num_tokens * rank + rank * d) + 2 * (d * d + d)) + 1
method = dict(
    adapters=[dict(type='vpt_dense.Rein', num_tokens=100, rank=16)],
    trainable=[r'^adapters\.'],
)
method_optim = dict(
    optimizer=dict(lr=0.0001, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            r'.tokens.': dict(decay_mult=0.0),
            r'.scale': dict(decay_mult=0.0),
        }
    ),
)
optim_group = 'adapters'
