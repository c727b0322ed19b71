# The last four blocks train, and no norm behind them.
# Trainable: 4 * block[-1]
method = dict(trainable=['last:4'])
optim_group = 'blocks'
