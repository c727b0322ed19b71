# Convpass (https://arxiv.org/abs/2207.07039): a bottleneck with a 3x3 convolution beside attention
# and beside the MLP of every block. The width is the authors', who search the scale for each data
# set.
# Trainable: sum(2 * n * (2 * d * hidden_dims + d + 9 * hidden_dims**2 + 2 * hidden_dims))
method = dict(
    adapters=[dict(type='vpt_dense.Convpass', hidden_dims=8, scale=0.1, dropout=0.1)],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
