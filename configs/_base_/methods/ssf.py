# SSF (https://arxiv.org/abs/2210.08823): a scale and a shift behind every operation, which
# tools/delta.py fold merges into the weights. The weight decay is the authors'.
# Trainable: sum(2 * n * (7 * d + u)) + 2 * embeds * d[0] + norms
method = dict(adapters=[dict(type='vpt_dense.SSF')], trainable=[r'^adapters\.'])
method_optim = dict(optimizer=dict(weight_decay=0.05))
optim_group = 'adapters'
