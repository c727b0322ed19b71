# SEP (https://arxiv.org/abs/2405.15549): prompts of both towers that are renewed before every block
# from tokens of the input. Adam, its epsilon and 50 epochs of 32 images a step are the authors'.
# Task: classification by text
# Trainable: of each tower num_tokens * width + (blocks - 1) * (the module that fuses), and of
# the classes 512 each
method = dict(
    prompt=dict(type='vpt_dense.SelfEnhancedPrompt', num_tokens=4, select='salient'),
    trainable=[r'^prompt\.'],
    norm_prompts=True,
)
method_head = dict(
    type='vpt_dense.SEPHead',
    text=dict(
        prompt=dict(type='vpt_dense.SelfEnhancedPrompt', num_tokens=6, select='next'),
        trainable=[r'^prompt\.'],
    ),
)
method_optim = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=0.0025, eps=0.001),
)
optim_group = 'prompts'
