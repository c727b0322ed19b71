# VPT-prefix (https://arxiv.org/abs/2203.12119, appendix): trainable keys and values in every block,
# which start as those that the blocks make of VPT-deep's prompts.
# Trainable: sum(2 * n * num_tokens * d)
method = dict(
    prompt=dict(type='vpt_dense.PrefixPrompt', num_tokens=10),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompt_layers'
