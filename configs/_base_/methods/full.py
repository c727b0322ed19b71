# Full fine-tuning: every parameter of the backbone trains, beside the heads.
method = dict(trainable=['.*'])
optim_group = 'all'
