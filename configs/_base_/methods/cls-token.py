# A control of VPT (https://arxiv.org/abs/2203.12119): the backbone's cls token trains, no prompts.
# Trainable: d[0]
method = dict(trainable=[r'^cls_token$'])
optim_group = 'prompts'
