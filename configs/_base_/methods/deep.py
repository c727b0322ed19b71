# VPT-deep (https://arxiv.org/abs/2203.12119): fresh prompts before every block. The number of
# tokens on ADE20K is the authors'; the dropout is that of the paper's classification runs.
# Trainable: sum(n * num_tokens * d)
method = dict(
    prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=10, deep=True, dropout=0.1),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompts'
