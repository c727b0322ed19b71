# PiSSA (https://arxiv.org/abs/2404.02948) of rank 8 on queries, keys and values of every block:
# LoRA that starts from the largest singular components of the weights.
# Trainable: sum(n * rank * (qkv + 3) * d)
method = dict(
    adapters=[dict(type='vpt_dense.PiSSA', rank=8, targets=[r'\.qkv$'])],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
