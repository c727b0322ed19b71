# VPT-deep with linked prompts and strengthened salient patches, after the abstract of iVPT
# (https://arxiv.org/abs/2404.05207), whose equations are not public; not compared with the authors'
# code.
# Trainable: n[0] * num_tokens * d[0] + 2 * n[0] - 1
method = dict(
    prompt=dict(type='vpt_dense.IVPTLikePrompt', num_tokens=10, salient=0.1, dropout=0.1),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompt_layers'
