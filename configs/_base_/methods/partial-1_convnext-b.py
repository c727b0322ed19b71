# Partial-1 of ConvNeXt-B: the last block (of 36) and the final norm train.
# Task: classification
# Trainable: block[-1] + 2 * d[-1]
method = dict(trainable=[r'^stages\.3\.2\.', r'^norm3\.'])
optim_group = 'blocks'
