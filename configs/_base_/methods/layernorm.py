# The norms of the backbone train: scales and shifts of all its layer norms.
# ConvNeXt's between its stages have no name that says so; names as in mmpretrain, timm,
# transformers and torchvision.
# Trainable: sum(n * block_norms) + rest_norms + norms
method = dict(trainable=[
    r'(^|[._])(ln|norm|layer_?norm|layrnorm)(_?(\d+|pre|before|after))?\.(weight|bias)$'
    r'|^downsample_layers\.(0\.1|[1-3]\.0)\.'])
optim_group = 'adapters'
