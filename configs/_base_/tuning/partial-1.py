# Partial-1 (https://arxiv.org/abs/2203.12119): the last block and the norms behind it train.
_base_ = './_adamw.py'
tuning = dict(trainable=['partial:1'])
