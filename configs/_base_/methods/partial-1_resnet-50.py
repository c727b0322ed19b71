# Partial-1 of ResNet-50: the last residual block (of 16) trains.
# Task: classification
# Trainable: block[-1]
method = dict(trainable=[r'^layer4\.2\.'])
optim_group = 'blocks'
