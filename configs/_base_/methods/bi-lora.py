# Bi-LoRA (https://arxiv.org/abs/2307.16867) of rank 32 on queries and values of every block: deltas
# hold one bit for each parameter.
# Trainable: sum(4 * n * rank * d)
method = dict(
    adapters=[dict(type='vpt_dense.BiLoRA', rank=32, bits=1, parts=['q', 'v'])],
    trainable=[r'^adapters\.'],
)
method_optim = dict(optimizer=dict(lr=0.001, weight_decay=0.0001))
optim_group = 'adapters'
