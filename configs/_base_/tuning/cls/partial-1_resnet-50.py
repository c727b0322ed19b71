# Partial-1 of ResNet-50: the last residual block (of 16) trains.
_base_ = './_adamw.py'
tuning = dict(trainable=[r'^layer4\.2\.'])
