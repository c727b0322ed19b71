# ViT-Split (https://arxiv.org/abs/2506.03433): a trained copy of the last blocks, and convolutions
# on maps of the frozen backbone, make a map in the place of the last one. Sizes are the authors'
# for twelve blocks (of 24: num_blocks=4, num_maps=8); the copy's rate is a tenth, as theirs.
# Task: segmentation
# Trainable: num_blocks * block[-1] + (num_maps + 20) * d[0]**2 + 328 * d[0] + 36
method = dict(
    adapters=[dict(type='vpt_dense.ViTSplit', num_blocks=3, num_maps=4)],
    trainable=[r'^adapters\.'],
)
method_optim = dict(
    optimizer=dict(lr=0.0002, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={r'.blocks.': dict(lr_mult=0.1)}),
)
optim_group = 'adapters'
