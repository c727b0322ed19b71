# Partial-2 (https://arxiv.org/abs/2203.12119): the last two blocks and the norms behind the
# blocks train.
# Trainable: 2 * block[-1] + norms
method = dict(trainable=['partial:2'])
optim_group = 'blocks'
