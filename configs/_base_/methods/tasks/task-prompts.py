# VPT-deep whose prompts all tasks share in early blocks, and each task has for itself in the last
# three, as TSP-Transformer places them (https://arxiv.org/abs/2311.03427). For model.task_heads.
# Trainable: ((n - 3) * num_tokens + 3 * tasks * task_tokens) * d
method = dict(
    prompt=dict(type='vpt_dense.TaskPrompts', num_tokens=10, task_layers=-3, dropout=0.1),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompts'
