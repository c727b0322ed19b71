# LoRA (https://arxiv.org/abs/2106.09685) of rank 8 on queries, keys and values of every block.
# Trainable: sum(n * rank * (qkv + 3) * d)
method = dict(
    adapters=[dict(type='vpt_dense.LoRA', rank=8, targets=[r'\.qkv$'])],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
