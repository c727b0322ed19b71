# L2P (https://arxiv.org/abs/2112.08654): each image takes 5 prompts of a pool of 10, by their keys;
# the classifier reads the mean of their outputs. With `vpt-dense continual`.
# Task: classification
# Trainable: pool_size * (num_tokens + 1) * d[0]
method = dict(
    prompt=dict(
        type='vpt_dense.L2PPrompt', num_tokens=5, pool_size=10, chosen=5, match=0.5),
    trainable=[r'^prompt\.'],
    out_type='avg_tokens',
    pool='prompts',
)
method_hooks = [dict(type='vpt_dense.PromptLossHook')]
optim_group = 'prompts'
