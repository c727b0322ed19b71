# Head-only: the whole backbone is frozen.
# Trainable: 0
method = dict(trainable=[])
optim_group = 'head'
