# FacT-TK (https://arxiv.org/abs/2212.03145): all blocks share two factors and a core (r, r, r),
# from which r numbers make the matrix between the factors for each of 12 matrices of a block.
# Trainable: sum(2 * d * rank + rank**3 + n * rank * (4 + fc1 * -(-u // (fc1 * d)) + -(-h // d)))
method = dict(
    adapters=[dict(type='vpt_dense.FacT', form='tk', rank=16)],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
