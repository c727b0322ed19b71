# E2VPT (https://arxiv.org/abs/2307.13770): VPT-deep's prompts, and in every block prompts among the
# keys and values. The authors search both numbers for each data set. Pruning: docs/methods.md.
# Trainable: sum(n * (num_tokens + num_kv_tokens) * d)
method = dict(
    prompt=dict(type='vpt_dense.E2VPTPrompt', num_tokens=10, num_kv_tokens=5, dropout=0.1),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompt_layers'
