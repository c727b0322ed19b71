# Bias tuning (BitFit, https://arxiv.org/abs/2106.10199): every bias of the backbone trains.
_base_ = './_adamw.py'
tuning = dict(trainable=['bias$'])
