# RepAdapter (https://arxiv.org/abs/2302.08106): linear bottlenecks before attention and MLP, which
# tools/delta.py fold merges into the weights. The sizes are the authors'.
# Trainable: sum(2 * n * (d * rank + rank + rank * d // groups + d))
method = dict(
    adapters=[dict(type='vpt_dense.RepAdapter', rank=8, groups=2, scale=1.0, dropout=0.1)],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
