# Bias tuning (BitFit, https://arxiv.org/abs/2106.10199): every bias of the backbone trains.
# Trainable: sum(n * block_biases) + rest_biases + norms // 2
method = dict(trainable=['bias$'])
optim_group = 'biases'
