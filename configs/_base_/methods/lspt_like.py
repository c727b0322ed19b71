# Prompts with a memory over the blocks, after the abstract of LSPT (https://arxiv.org/abs/2402.17406),
# whose equations are not public; not compared with the authors' code.
# Trainable: num_tokens * d[0] + 2 * d[0] * hidden_dims + 8 * hidden_dims**2 + 8 * hidden_dims
method = dict(
    prompt=dict(type='vpt_dense.LSPTLikePrompt', num_tokens=100, hidden_dims=112),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompt_layers'
