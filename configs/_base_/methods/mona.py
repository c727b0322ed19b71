# Mona (https://arxiv.org/abs/2408.08345): filters on the grid of patches, behind attention and
# behind the MLP of every block. The sizes are the authors'; the start at zero is ours.
# Trainable: sum(2 * n * (5 * d + 2 * d * hidden_dims + hidden_dims**2 + 2 * hidden_dims)
#   + 2 * (n - unread) * 86 * hidden_dims)
method = dict(
    adapters=[dict(type='vpt_dense.Mona', hidden_dims=64, dropout=0.1)],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
