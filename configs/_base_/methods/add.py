# "Add" (https://arxiv.org/abs/2203.12119, section 4.3): a learnt vector is added to the cls token
# and to every patch before the first block; with deep=True others before every block.
# Trainable: (n[0] if deep else 1) * tokens * d[0]
method = dict(
    adapters=[dict(type='vpt_dense.AddPrompt', per_token=True, deep=False)],
    trainable=[r'^adapters\.'],
)
optim_group = 'prompts'
