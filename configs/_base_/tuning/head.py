# Head-only: the whole backbone is frozen.
_base_ = './_sgd_setr.py'
tuning = dict(trainable=[])
