# Five dense tasks for `vpt-dense analyse transfer configs/transfer/dense.py` (docs/transfer.md), as
# small as can be: 60 iterations of 2 images of 126x126, at most twelve validation images.
# data/brain: tools/dev/make_brain.py; data/cells: tools/dev/make_cells.py.
_load = [dict(type='LoadImageFromFile'), dict(type='vpt_dense.LoadMask')]
_train = [*_load, dict(type='Resize', scale=(126, 126), keep_ratio=False),
          dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]
# The whole image, whatever it shows: of 126x126 pixels, tested at its own size.
_test = [_load[0], _train[2], _load[1], _train[4]]
options = [
    'img_size=126', 'batch_size=2', 'iters=60', 'warmup=5', 'train_cfg.val_interval=60',
    'default_hooks.checkpoint.interval=100000', 'default_hooks.checkpoint.save_best=None',
    'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0', 'model.test_cfg.mode=whole',
    f'train_dataloader.dataset.pipeline={_train}', f'val_dataloader.dataset.pipeline={_test}']
_recipes = 'configs/results/'
_cells = ['dataset.data_root=data/cells',
          "dataset.classes=['other', 'red cell', 'white cell', 'platelet']"]
tasks = dict(
    streets=dict(
        recipe=_recipes + 'camvid_dinov2-s.py',
        options=['val_dataloader.dataset.indices=[0,8,16,24,32,40,48,56,64,72,80,88]']),
    nuclei=dict(
        recipe=_recipes + 'nuclei_dinov2-s.py',
        options=['val_dataloader.dataset.indices=[0,7,14,21,28,35,42,49,56,63,70,77]']),
    membranes=dict(recipe=_recipes + 'membrane_dinov2-s.py'),
    brain=dict(
        recipe=_recipes + 'brain_dinov2-s.py',
        options=['val_dataloader.dataset.indices=[0,1,3,4,6,7,9,10,12,14,16,18]']),
    cells=dict(
        recipe=_recipes + 'nuclei_dinov2-s.py',
        options=[*_cells, 'val_dataloader.dataset.indices=[0,7,14,21,28,35,42,49,56,63,70,77]']),
)
method = 'deep'
seeds = [0, 1]
share = 0.1
