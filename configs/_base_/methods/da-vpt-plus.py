# DA-VPT+ (https://arxiv.org/abs/2505.23694): DA-VPT, and the biases of queries, keys and values.
# Trainable: sum(n * (num_tokens + 3) * d)
method = dict(
    prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=20, deep=True, dropout=0.1),
    trainable=[r'^prompt\.', r'\.qkv\.bias$'],
)
method_hooks = [
    dict(type='vpt_dense.MetricLossHook', weight=0.02, cls_weight=0.02, scale=32.0, margin=0.1,
         interval=None, seed=0)]
optim_group = 'prompts_and_biases'
