# VPT-deep (https://arxiv.org/abs/2203.12119) and LoRA (https://arxiv.org/abs/2106.09685) together.
# LoRA acts on the keys and values of the prompts too.
# Trainable: sum(n * (num_tokens + (qkv + 3) * rank) * d)
method = dict(
    prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=10, deep=True, dropout=0.1),
    adapters=[dict(type='vpt_dense.LoRA', rank=8, targets=[r'\.qkv$'])],
    trainable=[r'^prompt\.', r'^adapters\.'],
)
optim_group = 'prompts_and_adapters'
