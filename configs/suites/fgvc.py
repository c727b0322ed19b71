# The fine-grained sets as in the VPT paper (https://arxiv.org/abs/2203.12119): settings are
# searched on train and judged on val; the best are trained on train again and tested, with five
# seeds. docs/datasets.md has the folders.
recipe = 'vpt_dense::vit-b_fgvc'
tasks = {
    name: dict(options=[f'dataset.data_root=data/fgvc/{name}'])
    for name in ('CUB_200_2011', 'nabirds', 'OxfordFlower', 'Stanford-dogs', 'Stanford-cars')}
methods = ['full', 'linear', 'bias', 'shallow', 'deep']
reference = 'full'
seeds = [42, 44, 82, 100, 800]
# The paper's grids of base rates (for 256 images) and decays: 40 points for SGD, 16 for AdamW.
sampler = 'grid'
trials = 40
_decay = 'weight_decay=0.01,0.001,0.0001,0'
space = ['lr=50,25,10,5,2.5,1,0.5,0.25,0.1,0.05', _decay]
_adamw = ['lr=0.005,0.001,0.0005,0.0001', _decay]
method_space = dict(full=_adamw, bias=_adamw)
