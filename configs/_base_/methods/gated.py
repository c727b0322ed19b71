# Gated prompt tuning (https://arxiv.org/abs/2306.05067): prompts before the first block, and a gate
# behind each block for what it makes of them.
# Trainable: num_tokens * d[0] + n[0] - 1
method = dict(
    prompt=dict(type='vpt_dense.GatedPrompt', num_tokens=100, gate_init=-5.0),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompt_layers'
