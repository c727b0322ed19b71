# TCPA (https://arxiv.org/abs/2505.02406): in every block the class token and each patch choose
# their prompts from two pools. The authors search sizes and numbers for each data set.
# Task: classification
# Trainable: (n[0] * class_pool + (n[0] - 1) * patch_pool) * (num_tokens + 1) * d[0]
method = dict(
    prompt=dict(
        type='vpt_dense.TCPAPrompt', num_tokens=1, class_pool=20, class_chosen=10, patch_pool=20,
        patch_chosen=10, match=0.01),
    trainable=[r'^prompt\.'],
)
method_hooks = [dict(type='vpt_dense.PromptLossHook')]
optim_group = 'prompts'
