# VeRA (https://arxiv.org/abs/2310.11454) of rank 256 on queries and values of every block: two
# vectors train, between random matrices that all blocks share.
# Trainable: sum(2 * n * (rank + d))
method = dict(
    adapters=[dict(type='vpt_dense.VeRA', rank=256, parts=['q', 'v'])],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
