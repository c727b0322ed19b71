# VPT-deep (https://arxiv.org/abs/2203.12119, section 4.3, "final output"): the classifier reads the
# mean of the prompts and patches in place of the cls token.
# Task: classification
# Trainable: sum(n * num_tokens * d)
method = dict(
    prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=10, deep=True, dropout=0.1),
    trainable=[r'^prompt\.'],
    out_type='avg_tokens',
    pool='both',
)
optim_group = 'prompts'
