# Full fine-tuning: every parameter of the backbone trains, beside the heads.
# Trainable: sum(n * block) + rest + norms
method = dict(trainable=['.*'])
optim_group = 'all'
