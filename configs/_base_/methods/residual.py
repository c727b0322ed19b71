# VPT-deep whose prompts take in those of the layer before, through a linear layer over the tokens
# (https://github.com/weeknan/ProPETL). Number and dropout are those found there.
# Trainable: sum(n * num_tokens * d + (n - 1) * (num_tokens**2 + num_tokens))
method = dict(
    prompt=dict(type='vpt_dense.ResidualPrompt', num_tokens=100, dropout=0.1),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompt_layers'
