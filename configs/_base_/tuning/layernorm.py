# The norms of the backbone train: scales and shifts of all its layer norms.
_base_ = './_adamw.py'
tuning = dict(trainable=[r'(^|\.|_)(ln|norm)\d*\.(weight|bias)$'])
