# PAE (https://arxiv.org/abs/2601.20232): VPT-deep that starts from frequencies of the training
# images, and whose change from block to block is kept linear and stable. Validation images must be
# of one size. 64 training images pass once for each window before the first iteration.
# Trainable: sum(n * num_tokens * d) + koopman_dims * d[0] + 2 * koopman_dims ** 2
method = dict(
    prompt=dict(
        type='vpt_dense.PAEPrompt', num_tokens=10, dropout=0.1, koopman=0.5, lyapunov=0.2,
        koopman_dims=256),
    trainable=[r'^prompt\.'],
)
method_hooks = [
    dict(type='vpt_dense.PromptLossHook'),
    dict(type='vpt_dense.PromptStartHook', source='frequencies', max_images=64, seed=0, window=16,
         stride=8)]
optim_group = 'prompts'
