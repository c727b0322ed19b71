# VTAB-1k as in the VPT paper (https://arxiv.org/abs/2203.12119): settings are searched on train800
# and judged on val200; the best are trained on both and tested, with the paper's five seeds.
# docs/datasets.md has the folders.
_groups = dict(
    Natural=[
        'cifar', 'caltech101', 'dtd', 'oxford_flowers102', 'oxford_iiit_pet', 'svhn', 'sun397'],
    Specialized=['patch_camelyon', 'eurosat', 'resisc45', 'diabetic_retinopathy'],
    Structured=[
        'clevr_count', 'clevr_dist', 'dmlab', 'kitti', 'dsprites_loc', 'dsprites_ori',
        'smallnorb_azi', 'smallnorb_ele'],
)
recipe = 'vpt_dense::vit-b_vtab'
tasks = {
    task: dict(group=group, options=[f'dataset.data_root=data/vtab-1k/{task}'])
    for group, names in _groups.items() for task in names}
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
retrain = [
    'train_dataloader.dataset.split=train800val200', 'val_dataloader=None', 'val_cfg=None',
    'val_evaluator=None', 'default_hooks.checkpoint.save_best=None']
