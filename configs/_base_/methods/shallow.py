# VPT-shallow (https://arxiv.org/abs/2203.12119): prompts before the first block, no dropout.
# Trainable: num_tokens * d[0]
method = dict(
    prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=50, deep=False, dropout=0.0),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompts'
