# VPT-deep whose prompts start at the centres of a k-means of what training images are made of: the
# patch embeddings of all images (layers='one', for every block), or what enters each block
# (layers='each').
# Trainable: sum(n * num_tokens * d)
method = dict(
    prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=10, deep=True, dropout=0.1),
    trainable=[r'^prompt\.'],
)
method_hooks = [
    dict(type='vpt_dense.PromptStartHook', source='samples', layers='one', max_images=1000, seed=0)
]
optim_group = 'prompts'
