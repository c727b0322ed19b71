# "Add-1" (https://arxiv.org/abs/2203.12119, section 4.3): one learnt vector is added to the cls
# token and to every patch before the first block; with deep=True another before every block.
# Trainable: (n[0] if deep else 1) * d[0]
method = dict(
    adapters=[dict(type='vpt_dense.AddPrompt', per_token=False, deep=False)],
    trainable=[r'^adapters\.'],
)
optim_group = 'prompts'
