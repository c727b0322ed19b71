# The norms of the backbone train: scales and shifts of all its layer norms.
_base_ = './_adamw.py'
# ConvNeXt's between its stages have no name that says so.
tuning = dict(trainable=[
    r'(^|\.|_)(ln|norm)\d*\.(weight|bias)$|^downsample_layers\.(0\.1|[1-3]\.0)\.'])
