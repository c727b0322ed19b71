# CODA-Prompt (https://arxiv.org/abs/2211.13218): keys and values that are sums of components,
# weighted for each image. With `vpt-dense continual`; alone it is a stream of one step.
# Task: classification
# Trainable: 5 * components * (2 * num_tokens + 2) * d[0]
method = dict(
    prompt=dict(
        type='vpt_dense.CODAPrompt', num_tokens=4, components=10, layers=(0, 5), ortho=0.1),
    trainable=[r'^prompt\.'],
)
method_hooks = [dict(type='vpt_dense.PromptLossHook')]
optim_group = 'prompts'
