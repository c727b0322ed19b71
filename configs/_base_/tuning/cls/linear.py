# Linear probing: the whole backbone is frozen, the head trains.
_base_ = './_sgd.py'
tuning = dict(trainable=[])
