# GLoRA (https://arxiv.org/abs/2306.07967) of rank 4 on queries, keys and values of every block,
# with one form for all layers: products for weights, a product and a vector for biases.
# Trainable: sum(n * ((2 * (3 + qkv) + qkv) * rank * d + qkv * rank + 3 * d))
method = dict(
    adapters=[dict(type='vpt_dense.GLoRA', rank=4, targets=[r'\.qkv$'])],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
