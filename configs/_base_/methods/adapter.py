# Adapters behind the MLP of every block (https://arxiv.org/abs/2005.00247), C / 8 wide, as the VPT
# paper compares with them.
# Trainable: sum(n * (2 * d * (d // reduction) + d // reduction + d))
method = dict(
    adapters=[dict(type='vpt_dense.BottleneckAdapter', reduction=8)],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
