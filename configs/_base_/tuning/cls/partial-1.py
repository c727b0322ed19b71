# Partial-1 of ViT-B: the last block (of 12) and the final norm (`ln1`) train.
_base_ = './_adamw.py'
tuning = dict(trainable=[r'^layers\.11\.', r'^ln1\.'])
