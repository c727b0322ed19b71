# AdaptFormer (https://arxiv.org/abs/2205.13535): bottlenecks of 64 beside the MLP of every block.
# The sizes are the authors'; they train with SGD and search the rate.
# Trainable: sum(n * (2 * d * hidden_dims + hidden_dims + d))
method = dict(
    adapters=[dict(type='vpt_dense.AdaptFormer', hidden_dims=64, scale=0.1, dropout=0.1)],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
