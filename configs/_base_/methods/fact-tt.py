# FacT-TT (https://arxiv.org/abs/2212.03145): all blocks share two factors; between them is a matrix
# (r, r) for each of 12 matrices of a block.
# Trainable: sum(2 * d * rank + n * rank**2 * (4 + fc1 * -(-u // (fc1 * d)) + -(-h // d)))
method = dict(
    adapters=[dict(type='vpt_dense.FacT', form='tt', rank=16)],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
