# Partial-1 of ViT-L: the last block (of 24) and the final norm (`ln1`) train.
_base_ = './_adamw.py'
tuning = dict(trainable=[r'^layers\.23\.', r'^ln1\.'])
