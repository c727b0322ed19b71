# SoMA (https://arxiv.org/abs/2412.04077): updates that start from the smallest singular components
# of all linear layers of the blocks behind the first third. Sizes and optimizer are the authors'.
# Trainable: sum(late * rank * ((9 + fc1) * d + u + h))
method = dict(
    adapters=[dict(type='vpt_dense.SoMA', rank=16)],
    trainable=[r'^adapters\.'],
)
method_optim = dict(optimizer=dict(lr=0.0001, weight_decay=0.05))
optim_group = 'adapters'
