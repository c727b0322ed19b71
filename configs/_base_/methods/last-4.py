# The last four blocks train, and no norm behind them.
method = dict(trainable=['last:4'])
optim_group = 'blocks'
