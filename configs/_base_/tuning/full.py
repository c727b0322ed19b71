# Full fine-tuning: every parameter of the backbone trains, beside the heads.
_base_ = './_sgd_setr.py'
tuning = dict(trainable=['.*'])
