# VTAB-1k as in the VPT paper: a search on train800, judged on val200; then the best settings are
# trained on both and tested, with the paper's five seeds. docs/datasets.md has the folders:
# vpt-dense suite configs/suites/vtab-1k.py --dry-run
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
# Of the paper's grids, 10 rates (4 for AdamW) times 4 decays, as many as this are drawn for each
# method. `own` stands for the rates of the method's optimizer.
trials = 24
sampler = 'random'
space = ['lr=50,25,10,5,2.5,1,0.5,0.25,0.1,0.05', 'weight_decay=0.01,0.001,0.0001,0']
retrain = [
    'train_dataloader.dataset.split=train800val200', 'val_dataloader=None', 'val_cfg=None',
    'val_evaluator=None', 'default_hooks.checkpoint.save_best=None']
