# A control of VPT (https://arxiv.org/abs/2203.12119): the backbone's cls token trains, no prompts.
# Trainable: d[0]
method = dict(trainable=[r'(^|\.)(cls_token|class_token|class_embedding)$'])
optim_group = 'prompts'
