# The last four blocks train, and no norm behind them.
_base_ = './_adamw.py'
tuning = dict(trainable=['last:4'])
