# Partial-2 (https://arxiv.org/abs/2203.12119): the last two blocks and the norms behind the
# blocks train.
_base_ = './_adamw.py'
tuning = dict(trainable=['partial:2'])
