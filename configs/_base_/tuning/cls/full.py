# Full fine-tuning: every parameter of the backbone trains, beside the head.
_base_ = './_adamw.py'
tuning = dict(trainable=['.*'])
