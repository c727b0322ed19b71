# CoOp (https://arxiv.org/abs/2109.01134): learnt words before the name of each class. words=
# 'a photo of a' with num_tokens=4, per_class=True and position='middle' are its variants.
# Task: classification by text
# Trainable: num_tokens * text width; times the classes with per_class
method = dict(trainable=[])
method_head = dict(
    text=dict(prompt=dict(type='vpt_dense.ContextPrompt', num_tokens=16), trainable=[r'^prompt\.'])
)
optim_group = 'prompts'
