# A control of VPT-deep (https://arxiv.org/abs/2203.12119): its prompts stay at their random start.
# Trainable: 0
method = dict(
    prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=10, deep=True, dropout=0.0),
    trainable=[],
)
optim_group = 'head'
