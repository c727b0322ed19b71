# MTLoRA (https://arxiv.org/abs/2403.20320): low-rank updates that all tasks share, rank 64, and in
# the last three blocks of each task, rank 4. For model.task_heads.
# Trainable: (n * rank + 3 * tasks * task_rank) * (inputs + outputs of the four layers of a block)
method = dict(
    adapters=[dict(type='vpt_dense.MTLoRA', rank=64, task_rank=4, task_layers=-3)],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
