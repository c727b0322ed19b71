# Six small sets of images, at most 100 a class for training, on DINOv2 ViT-S/14 at 112 pixels,
# 100 iterations of 16. tools/dev/make_patches.py and make_textiles.py make cells, membranes,
# streets and textiles; flowers and CIFAR-10 are image folders.
recipe = 'vpt_dense::flowers_dinov2-s'
options = ['preprocessing=resize112']
tasks = {
    name: dict(options=[f'dataset.data_root=data/{folder}', *own])
    for name, folder, own in (
        ('flowers', 'flowers', []),
        ('cifar10', 'cifar10', ['subset.per_class=100']),
        ('textiles', 'textiles', []),
        ('cells', 'cells', []),
        ('membranes', 'membranes', []),
        ('streets', 'streets', []))}
# Frozen features of images that no augmentation changes: the same results, in half the time.
method_options = dict(linear=['feature_cache.folder=work_dirs/features'])
methods = ['linear', 'shallow', 'deep', 'bias', 'lora', 'full']
reference = 'linear'
seeds = [0, 1, 2]
