# RepAdapter (https://arxiv.org/abs/2302.08106): linear bottlenecks before attention and MLP, which
# tools/delta.py fold merges into the weights. The sizes are the authors'.
_base_ = './_adamw.py'
tuning = dict(
    adapters=[dict(type='vpt_dense.RepAdapter', rank=8, groups=2, scale=1.0, dropout=0.1)],
    trainable=[r'^adapters\.'],
)
