# DualPrompt (https://arxiv.org/abs/2204.04799): keys and values for all steps in blocks 0 and 1,
# for each step in blocks 2 to 4. With `vpt-dense continual`; alone it is a stream of one step.
# Task: classification
# Trainable: (4 * num_general + 6 * num_expert + 1) * d[0]
method = dict(
    prompt=dict(
        type='vpt_dense.DualPrompt',
        num_general=5,
        num_expert=20,
        general_layers=(0, 2),
        expert_layers=(2, 5),
        match=1.0,
    ),
    trainable=[r'^prompt\.'],
)
method_hooks = [dict(type='vpt_dense.PromptLossHook')]
optim_group = 'prompts'
