# VPT + bias (https://arxiv.org/abs/2203.12119): deep prompts and every bias of the backbone. The
# number of tokens on ADE20K is the authors'.
# Trainable: sum(n * (num_tokens * d + block_biases)) + rest_biases + norms // 2
method = dict(
    prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=100, deep=True, dropout=0.1),
    trainable=[r'^prompt\.', 'bias$'],
)
optim_group = 'prompts_and_biases'
