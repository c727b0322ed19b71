# VPT-deep (https://arxiv.org/abs/2203.12119) in CLIP's image tower, as MaPLe's authors compare with
# it (https://arxiv.org/abs/2210.03117): the prompts of the first block go through the norm before
# it. The texts are computed once.
# Task: classification by text
# Trainable: blocks * num_tokens * image width
method = dict(
    prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=8, deep=True),
    trainable=[r'^prompt\.'],
    norm_prompts=True,
)
method_head = dict()
method_optim = dict(optimizer=dict(lr=0.0025))
optim_group = 'prompts'
