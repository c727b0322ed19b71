# VFPT (https://arxiv.org/abs/2411.01327): VPT-deep, a share of whose prompts is Fourier
# transformed. The authors search the share and the number for each data set.
# Trainable: sum(n * num_tokens * d)
method = dict(
    prompt=dict(type='vpt_dense.FourierPrompt', num_tokens=10, fourier_share=0.5, dropout=0.1),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompts'
