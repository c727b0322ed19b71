# APLA (https://arxiv.org/abs/2503.11335): the layer behind attention trains in every block.
_base_ = './_adamw.py'
tuning = dict(trainable=[r'\.proj\.(weight|bias)$'])
