# VPT-deep whose prompts start at the mean cls token of each class (https://arxiv.org/abs/2203.12119,
# section 4.3) behind the last block (layers='one') or behind each block (layers='each').
# Task: classification
# Trainable: sum(n * num_tokens * d)
method = dict(
    prompt=dict(
        type='vpt_dense.TokenPrompt',
        num_tokens='classes',  # as many as the data set has
        deep=True,
        dropout=0.1,
    ),
    trainable=[r'^prompt\.'],
)
method_hooks = [
    dict(type='vpt_dense.PromptStartHook', source='prototypes', layers='one', max_images=None)
]
optim_group = 'prompts'
