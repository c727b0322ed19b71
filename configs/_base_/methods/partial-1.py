# Partial-1 (https://arxiv.org/abs/2203.12119): the last block and the norms behind it train.
# Trainable: block[-1] + norms
method = dict(trainable=['partial:1'])
optim_group = 'blocks'
