# Rank-stabilised LoRA (https://arxiv.org/abs/2312.03732) on queries, keys and values of every
# block: LoRA with the scale alpha / sqrt(rank).
# Trainable: sum(n * rank * (qkv + 3) * d)
method = dict(
    adapters=[dict(type='vpt_dense.LoRA', rank=8, alpha=8, rslora=True, targets=[r'\.qkv$'])],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
