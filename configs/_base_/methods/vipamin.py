# VPT-deep whose prompts start at means of patches with near keys, and outside of what attention
# puts out (VIPAMIN, NeurIPS 2025). Validation images must be of one size.
# Trainable: sum(n * num_tokens * d)
method = dict(
    prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=20, deep=True, dropout=0.1),
    trainable=[r'^prompt\.'],
)
method_hooks = [
    dict(type='vpt_dense.PromptStartHook', source='vipamin', max_images=256, seed=0, neighbours=8,
         share=0.5)]
optim_group = 'prompts'
