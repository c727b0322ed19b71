# Bias tuning (BitFit, https://arxiv.org/abs/2106.10199): every bias of the backbone trains.
method = dict(trainable=['bias$'])
optim_group = 'biases'
