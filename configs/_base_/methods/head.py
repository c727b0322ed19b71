# Head-only: the whole backbone is frozen.
method = dict(trainable=[])
optim_group = 'head'
