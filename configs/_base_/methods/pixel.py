# "Prepend-pixel" (https://arxiv.org/abs/2203.12119, section 4.3): patches of learnt pixels go
# through the patch embedding and enter the first block as prompts. start: 'uniform' (the paper's),
# 'normal' or 'image', which mean and std (those of the data preprocessor) normalise.
# Trainable: 3 * kernel * num_tokens
method = dict(
    prompt=dict(
        type='vpt_dense.PixelPrompt', num_tokens=50, start='uniform', mean=None, std=None
    ),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompts'
