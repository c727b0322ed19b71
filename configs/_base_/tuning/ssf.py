# SSF (https://arxiv.org/abs/2210.08823): a scale and a shift behind every operation, which
# tools/delta.py fold merges into the weights. The weight decay is the authors'.
_base_ = './_adamw.py'
tuning = dict(adapters=[dict(type='vpt_dense.SSF')], trainable=[r'^adapters\.'])
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
