# Shared and group prompts after SGPT (https://arxiv.org/abs/2310.18285), for strategy SGPTLike of
# docs/federated.md.
# Trainable: (shared layers + group layers * groups) * num_tokens * d + groups * d
method = dict(
    prompt=dict(type='vpt_dense.SharedGroupPrompt', groups=4, shared_layers=(0, 4),
                group_layers=(4, 7)),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompts'
