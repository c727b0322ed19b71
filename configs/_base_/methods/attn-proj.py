# APLA (https://arxiv.org/abs/2503.11335): the layer behind attention trains in every block.
# Trainable: sum(n * (d * d + d))
method = dict(trainable=[r'(attn|msa)\.proj\.(weight|bias)$'])
optim_group = 'blocks'
