# DA-VPT (https://arxiv.org/abs/2505.23694): VPT-deep with a metric loss that pulls each of the last
# prompts to the classes that are its own.
# Trainable: sum(n * num_tokens * d)
method = dict(
    prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=20, deep=True, dropout=0.1),
    trainable=[r'^prompt\.'],
)
method_hooks = [
    dict(type='vpt_dense.MetricLossHook', weight=0.02, cls_weight=0.02, scale=32.0, margin=0.1,
         interval=None, seed=0)]
optim_group = 'prompts'
