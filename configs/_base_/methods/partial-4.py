# Partial-4 (https://arxiv.org/abs/2203.12119): the last four blocks and the norms behind the
# blocks train.
# Trainable: 4 * block[-1] + norms
method = dict(trainable=['partial:4'])
optim_group = 'blocks'
