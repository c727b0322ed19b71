# DoRA (https://arxiv.org/abs/2402.09353) of rank 8 on queries, keys and values of every block.
# Trainable: sum(n * (rank * (qkv + 3) + 3) * d)
method = dict(
    adapters=[dict(type='vpt_dense.DoRA', rank=8, targets=[r'\.qkv$'])],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
