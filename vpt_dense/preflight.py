"""Checks of a run that need only its config and the disk, made before anything is built."""

import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from vpt_dense import machine, pretraining, tasks
from vpt_dense.argument_checks import is_int, is_number, to_pair
from vpt_dense.config import architecture
from vpt_dense.datasets import coco, geo_samples, list_files, map_files, panoptic
from vpt_dense.datasets.checks import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    find_classes,
    list_class_files,
    list_images,
    pair_files,
)
from vpt_dense.datasets.listing import read_names
from vpt_dense.errors import UserError, suggest
from vpt_dense.tree import (
    DATALOADERS,
    as_list,
    get,
    heads,
    kind_of,
    leaf_datasets,
    placed_datasets,
    placed_heads,
    walk,
)

#: Suffixes (images, masks) that a data set class takes when the config does not say.
_SUFFIXES = {
    'ADE20KDataset': ('.jpg', '.png'),
    'BaseSegDataset': ('.jpg', '.png'),
    'SegFolder': (IMAGE_SUFFIXES, MASK_SUFFIXES),
}
#: Data sets that fetch their files by themselves.
_DOWNLOADED = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')


def check(cfg: Config, mode: str, checkpoint: str | None = None) -> None:
    """Check a run.

    Args:
        cfg: The config as :func:`vpt_dense.config.load` returns it, ``work_dir`` set.
        mode: ``train`` or ``test``.
        checkpoint: What is tested, or what training resumes from or starts from.

    Raises:
        UserError: At the first thing that is wrong.
    """
    from vpt_dense import safe_files

    machine.check_gpus(int(os.environ.get('LOCAL_WORLD_SIZE', 1)))
    check_parts(cfg, mode)
    check_values(cfg)
    check_model(cfg.get('model') or {})
    check_heads(cfg)
    check_class_weights(cfg)
    check_topk(cfg, mode)
    check_bands(cfg)
    if mode == 'train':
        check_optimizer(cfg.get('optim_wrapper') or {}, cfg.get('default_scope'))
        check_counting(cfg)
        check_crop(cfg)
        check_prompt_loss(cfg)
    if checkpoint is not None and not isinstance(checkpoint, str):
        raise UserError(f'load_from is {checkpoint!r}; it must be the path of a checkpoint')
    if checkpoint and '://' not in checkpoint:
        safe_files.check(checkpoint)
    if mode == 'train':
        for place, path in pretrained(cfg.get('model'), 'model'):
            if '://' not in path and not path.startswith('hf-hub:'):  # not an address
                if not Path(path).expanduser().is_file():
                    raise UserError(
                        f'{place}.checkpoint: no file {path}; the config says where to get it '
                        f'(to start from random weights: --cfg-options {place}=None)'
                    )
                safe_files.check(path)
    splits = ('train', 'val') if mode == 'train' else ('test',)
    for split in splits:
        for dataset in leaf_datasets(cfg.get(f'{split}_dataloader')):
            check_dataset(dataset, split)
    check_work_dir(cfg.work_dir)


def check_work_dir(work_dir: str) -> None:
    """Create the folder and a file in it."""
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
    except OSError as error:
        raise UserError(
            f'work_dir {work_dir} is not writable ({error.strerror.lower()}); choose another with '
            '--work-dir'
        ) from error


# --- model and optimizer ---------------------------------------------------------------------


def check_model(model: dict) -> None:
    """Sizes, widths, depths and numbers of classes against each other."""
    model = model.get('module') or model  # inside test-time augmentation
    backbone = model.get('backbone') or {}
    if str(backbone.get('type')).endswith('VisionTransformer'):
        _check_vit(model, backbone)
    size, patch = backbone.get('img_size'), backbone.get('patch_size', 1)
    if str(backbone.get('type')).endswith('VisionTransformer'):
        patch = pretraining.patch_size(backbone)
    if size is not None:
        sizes, patches = as_list(size), as_list(patch)
        numbers = [*sizes, *patches]
        if not all(is_int(n, 1) for n in numbers):
            raise UserError(
                f'model.backbone: img_size={size!r} and patch_size={patch!r} must be positive '
                'integers (pixels)'
            )
        if any(s % p for s in sizes for p in patches):
            raise UserError(
                f'model.backbone.img_size {size} is not a multiple of patch_size {patch}: the '
                f'last rows or columns would be lost; use {sizes[0] // patches[0] * patches[0]} '
                f'or {-(-sizes[0] // patches[0]) * patches[0]}'
            )
        for part, key in (('data_preprocessor', 'size'), ('test_cfg', 'crop_size')):
            crop = (model.get(part) or {}).get(key)
            if isinstance(crop, (list, tuple)) and any(c % p for c in crop for p in patches):
                raise UserError(
                    f'model.{part}.{key} {tuple(crop)} is not a multiple of patch_size {patch}: '
                    'patches at the border would be padded and the prediction shifted; set it '
                    'and the crops of the pipelines to a multiple, as model.backbone.img_size'
                )
    counts = {head['num_classes'] for head in heads(model) if 'num_classes' in head}
    task = tasks.of(model)
    if len(counts) > 1 and (task is None or task.classes):
        raise UserError(
            f'the heads of the model disagree on num_classes: {sorted(counts)}; set '
            'dataset.classes, the heads follow'
        )


def check_heads(cfg: Config) -> None:
    """Check that heads, losses and classes fit together, so that there is something to learn."""
    model = cfg.get('model') or {}
    model = model.get('module') or model
    if (task := tasks.of(model)) and task.regions:
        return  # one class, and the background, are something to tell apart
    classes = next((leaf['metainfo']['classes'] for leaf in leaf_datasets(
        cfg.get('train_dataloader')) if (leaf.get('metainfo') or {}).get('classes')), None)
    for place, head in placed_heads(model):
        number = head.get('num_classes')
        dense = tasks.is_dense(model)
        losses = [node for key in ('loss_decode', 'loss') for _, node in walk(head.get(key), '')]
        sigmoid = any(node.get('use_sigmoid') for node in losses)
        if number == 1 and (dense or not sigmoid) and 'MultiLabel' not in kind_of(head):
            name = repr(classes[0]) if classes and len(classes) == 1 else 'one'
            if not dense:
                raise UserError(
                    f'{place}.num_classes is 1 ({name}): the softmax of one class is always 1 and '
                    'the loss 0; a classifier needs two folders of classes or more'
                )
            raise UserError(
                f'{place}.num_classes is 1 ({name}): the softmax of one class is always 1 and the '
                f"loss 0; name what is around it too, dataset.classes=['background', "
                f'{name if classes else repr("object")}] for labels 0 and 1; or with that one '
                'channel and a sigmoid: configs/examples/foreground_background.py'
            )
        if head.get('out_channels') == 1 and dense:
            plain = next((n for n in losses if kind_of(n) == 'CrossEntropyLoss'
                          and not n.get('use_sigmoid')), None)  # fmt: skip
            if number != 2 or plain is not None:
                found = f'num_classes is {number}' if number != 2 else 'loss_decode is a softmax'
                raise UserError(
                    f'{place}.out_channels is 1, but its {found}: one channel is for two classes '
                    'and loss_decode.use_sigmoid=True (configs/examples/foreground_background.py)'
                )


def check_class_weights(cfg: Config) -> None:
    """A loss has a weight for each channel that its head has; of the classes, that is."""
    model = cfg.get('model') or {}
    for where, head in placed_heads(model.get('module') or model):
        number = head.get('out_channels') or head.get('num_classes')
        for key in ('loss_decode', 'loss'):
            for place, loss in walk(head.get(key), f'{where}.{key}'):
                weights = loss.get('class_weight')
                if number and isinstance(weights, (list, tuple)) and len(weights) != number:
                    channels = 'classes' if not head.get('out_channels') else 'channels'
                    raise UserError(
                        f'{place}.class_weight has {len(weights)} weights, but the head has '
                        f'{number} {channels}; give one for each, or None'
                    )


def check_prompt_loss(cfg: Config) -> None:
    """What some prompts add to the loss, and what they begin with, comes by a hook."""
    from vpt_dense import prompts

    hooks = [kind_of(hook) for hook in cfg.get('custom_hooks') or [] if isinstance(hook, dict)]
    for where, part in walk(get(cfg, 'model.backbone.prompt'), 'model.backbone.prompt'):
        kind = getattr(prompts, kind_of(part), None)
        if getattr(kind, 'adds_loss', False) and 'PromptLossHook' not in hooks:
            raise UserError(
                f'{where}: {kind.__name__} adds to the loss by a hook that custom_hooks has not; '
                "add dict(type='vpt_dense.PromptLossHook'), or take its --method")


def check_topk(cfg: Config, mode: str) -> None:
    """Among the best five there must be five classes: upstream says so behind an epoch."""
    head = (cfg.get('model') or {}).get('head') or {}
    number = head.get('num_classes')
    key = 'test_evaluator' if mode == 'test' else 'val_evaluator'
    parts = [(key, each) for each in as_list(cfg.get(key)) if isinstance(each, dict)]
    if head.get('cal_acc'):
        parts.append(('model.head', head))
    for place, part in parts:
        for k in as_list(part.get('topk')):
            if is_int(number) and is_int(k) and k > number:
                raise UserError(
                    f'{place}.topk asks for the best {k} classes, but there are {number}; leave '
                    f'{k} out')


def check_bands(cfg: Config) -> None:
    """Check that ``LoadBands`` normalises, gives the model's bands and is the same everywhere."""
    model = cfg.get('model') or {}
    model = model.get('module') or model
    found: list[tuple[str, dict | None]] = []  # (data set, arguments of its LoadBands or None)
    for name in DATALOADERS:
        for where, dataset in placed_datasets(cfg.get(name), name):
            kinds = {kind_of(step): step for step in dataset.get('pipeline') or ()}
            if any(kind == 'LoadBands' or kind.startswith('LoadImage') for kind in kinds):
                found.append((f'{where}.pipeline', kinds.get('LoadBands')))
    with_bands = [(where, load) for where, load in found if load is not None]
    if not with_bands:
        return
    channels = (model.get('backbone') or {}).get('in_channels', 3)
    for where, load in found:
        if load is None:
            raise UserError(
                f'{with_bands[0][0]} loads images with LoadBands, but {where} with the default '
                'loader: the model would see other values; say LoadBands in both'
            )
        count = len(load.get('mean') or ())
        if count != channels:
            raise UserError(
                f'model.backbone.in_channels is {channels}, but LoadBands of {where} gives '
                f'{count} bands (as many as mean has figures); set it to {count}'
            )
    trained = [load for where, load in found if where.startswith(DATALOADERS[0])]
    for where, load in with_bands if trained else ():
        if load not in trained:  # another sensor, or a slip
            print_log(
                f'{where} has LoadBands with other arguments than any part of training',
                'current', logging.WARNING)  # fmt: skip
    for place, owner in (('model.', model), ('', cfg)):
        preprocessor = owner.get('data_preprocessor') or {}
        for key, off in (('mean', None), ('std', None), ('bgr_to_rgb', False), ('to_rgb', False),
                         ('rgb_to_bgr', False)):  # fmt: skip
            if preprocessor.get(key):
                raise UserError(
                    f'{place}data_preprocessor.{key} is {preprocessor[key]!r}, but LoadBands has '
                    f'normalised the bands already, in the order of the file; set it to {off}'
                )


def check_crop(cfg: Config) -> None:
    """Images smaller than the others of a batch are padded to ``size``, those larger are not."""
    preprocessor = (cfg.get('model') or {}).get('data_preprocessor') or {}
    size = preprocessor.get('size')
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        return
    for where, dataset in placed_datasets(cfg.get('train_dataloader'), 'train_dataloader'):
        found = None
        for index, transform in enumerate(dataset.get('pipeline') or ()):
            crop = transform.get('crop_size') if kind_of(transform) == 'RandomCrop' else None
            if crop is not None:
                key = f'{where}.pipeline.{index}.crop_size'
                found = key, to_pair(key, crop)
            elif any(word in kind_of(transform) for word in ('Resize', 'Crop')):
                found = None  # another size afterwards
        if found and any(a > b for a, b in zip(found[1], size, strict=True)):
            raise UserError(
                f'{found[0]} is {found[1]}, above model.data_preprocessor.size {tuple(size)}, to '
                'which smaller images are padded; set both (and model.backbone.img_size) to one '
                'size'
            )


def _check_vit(model: dict, backbone: dict) -> None:
    """Depth and width of a vision transformer against what its own numbers and the heads ask."""
    indices = backbone.get('out_indices')
    outputs = len(indices) if isinstance(indices, (list, tuple)) else None
    shape = architecture(backbone)
    said = pretraining.NAME_KEY if pretraining.is_timms(backbone) else 'arch'
    if shape and indices is not None:
        width, depth, _ = shape
        for index in indices if outputs else [indices]:
            if not is_int(index, -depth) or index >= depth:
                raise UserError(
                    f'model.backbone.out_indices has {index!r}; the backbone has {depth} blocks: '
                    f'integers from 0 to {depth - 1}, or from -{depth} to -1'
                )
        arch = backbone.get('arch')
        heads_of = arch.get('num_heads') if isinstance(arch, dict) else None
        if isinstance(heads_of, int) and (heads_of < 1 or width % heads_of):
            raise UserError(
                f'model.backbone.arch: embed_dims {width} is not a multiple of num_heads {heads_of}'
            )
    for head in heads(model) if outputs else ():
        for index in as_list(head.get('in_index')):
            if isinstance(index, int) and not -outputs <= index < outputs:
                raise UserError(
                    f'in_index of the {head.get("type")} is {index}, but '
                    f'model.backbone.out_indices gives {outputs} outputs'
                )
        if isinstance(head.get('text'), dict):  # it reads what the backbone projects
            projected, wanted = backbone.get('project_dims', 512), head.get('in_channels')
            if projected != wanted:
                raise UserError(
                    f'in_channels of the {head.get("type")} is {wanted}, but '
                    f'model.backbone.project_dims is {projected}')
            continue
        for channels in as_list(head.get('in_channels')) if not model.get('neck') else ():
            if shape and isinstance(channels, int) and channels != shape[0]:
                raise UserError(
                    f'in_channels of the {head.get("type")} is {channels}, but the backbone is '
                    f'{shape[0]} wide (model.backbone.{said})'
                )
    neck = model.get('neck') or {}
    for channels in (neck.get('embed_dim'), *as_list(neck.get('in_channels'))):
        if shape and isinstance(channels, int) and channels != shape[0]:
            raise UserError(
                f'model.neck takes {channels} channels, but the backbone is {shape[0]} wide '
                f'(model.backbone.{said})'
            )


def check_optimizer(optim_wrapper: dict, scope: str | None = None) -> None:
    """The optimizer must be one that is known: the stack only says that None is not callable."""
    import mmengine.optim  # noqa: F401  registers those of torch
    from mmengine.registry import OPTIMIZERS

    kind = (optim_wrapper.get('optimizer') or {}).get('type')
    if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
        if scope in tasks.scopes() and OPTIMIZERS.get(f'{scope}.{kind}') is not None:
            return
        raise UserError(
            f"optim_wrapper.optimizer.type: unknown optimizer '{kind}'"
            f'{suggest(kind, OPTIMIZERS.module_dict)}'
        )


# --- values ----------------------------------------------------------------------------------


def _is_count(value: Any, least: int = 1) -> bool:
    return is_number(value) and value == int(value) and value >= least


def _all(test: Callable[[Any], bool], value: Any) -> bool:
    return all(map(test, value if isinstance(value, (list, tuple)) else [value]))


#: (places, what a value there must satisfy, that in words). A place is a dotted path of the config.
_RULES = [
    (re.compile(places), test, words)
    for places, test, words in (
        (r'optim_wrapper\.(.*\.)?(lr|weight_decay|momentum|\w+_mult)|model\..*\.loss_weight',
         lambda value: _all(is_number, value) and _all(lambda x: x >= 0, value),
         'a finite number, 0 or more'),
        (r'train_cfg\.(max_iters|max_epochs|val_interval)|\w+_dataloader\.batch_size'
         r'|default_hooks\.logger\.interval|optim_wrapper\.accumulative_counts',
         _is_count, 'an integer, 1 or more'),
        (r'\w+_dataloader\.num_workers|randomness\.seed',
         lambda value: _is_count(value, 0), 'an integer, 0 or more'),
        (r'default_hooks\.checkpoint\.(interval|max_keep_ckpts)',
         lambda value: _is_count(value) or value == -1, 'an integer, 1 or more, or -1 for never'),
        (r'model\.(.*\.)?(\w+_)?(drop_rate|drop_path_rate|dropout_ratio)',
         lambda value: _all(lambda x: is_number(x) and 0 <= x <= 1, value), 'from 0 to 1'),
        (r'.*\.pipeline\.(.*\.)?prob',
         lambda value: _all(lambda x: is_number(x) and 0 <= x <= 1, value), 'from 0 to 1'),
        (r'.*\.pipeline\.(.*\.)?crop_size',
         lambda value: _all(_is_count, value), 'positive, in pixels'),
        (r'(model\.)?data_preprocessor\.mean',
         lambda value: _all(is_number, value), 'finite numbers, one for each channel'),
        (r'(model\.)?data_preprocessor\.std',
         lambda value: _all(lambda x: is_number(x) and x > 0, value),
         'positive numbers, one for each channel'),
        (r'(val|test)_evaluator(\.\d+)?\.iou_metrics',
         lambda value: set(value) <= {'mIoU', 'mDice', 'mFscore'},
         'a list of mIoU, mDice and mFscore'),
        (r'log_level', lambda value: value in ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL'),
         'one of DEBUG, INFO, WARNING, ERROR, CRITICAL'),
    )
]  # fmt: skip


def check_values(cfg: Config) -> None:
    """Compare the config's values with what they may be; but for ``lr``, None is a default.

    The stack takes many of them as they are: training for -1 iterations or without validation ends
    well, and says nothing.
    """
    for place, value in _leaves(cfg._cfg_dict, ''):
        for places, test, words in _RULES:
            if value is None and not place.endswith('.lr'):
                continue
            if places.fullmatch(place) and not test(value):
                raise UserError(f'{place} is {value!r}; it must be {words}')


def _leaves(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    """(dotted place, value) of everything in a config that is no dict, lists of numbers whole."""
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, (list, tuple)) and any(isinstance(x, (dict, list)) for x in node):
        items = enumerate(node)
    else:
        yield place, node
        return
    for key, child in items:
        yield from _leaves(child, f'{place}.{key}' if place else str(key))


def check_parts(cfg: Config, mode: str) -> None:
    """Check that the parts exist which a run of this mode needs."""
    wanted = {
        'train': ('model', 'train_cfg', 'train_dataloader', 'optim_wrapper'),
        'test': ('model', 'test_cfg', 'test_dataloader', 'test_evaluator'),
    }[mode]
    # An empty evaluator is one of images without labels.
    lacking = [key for key in wanted if not cfg.get(key) and cfg.get(key) != []]
    if lacking:
        raise UserError(f'the config has no {", ".join(lacking)}, which {mode}ing needs')


def check_counting(cfg: Config) -> None:
    """A loop over iterations never ends an epoch: what waits for one would never come."""
    if kind_of(cfg.train_cfg) != 'IterBasedTrainLoop':
        return
    parts = {
        f'param_scheduler.{i}': part for i, part in enumerate(as_list(cfg.get('param_scheduler')))
        # Those that follow a metric are stepped by validations; these bounds alone are counted.
        if 'ReduceOnPlateau' not in str(part.get('type')) or {'begin', 'end'} & set(part)
    }  # fmt: skip
    parts['default_hooks.checkpoint'] = (cfg.get('default_hooks') or {}).get('checkpoint')
    parts['log_processor'] = {'by_epoch': False, **(cfg.get('log_processor') or {})}
    for place, part in parts.items():
        if isinstance(part, dict) and part.get('by_epoch', True):
            raise UserError(
                f'{place}.by_epoch is True but train_cfg counts iterations '
                '(IterBasedTrainLoop); set it to False'
            )


def pretrained(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Places of ``init_cfg=dict(type='Pretrained')`` below a node, and the files they name."""
    for where, part in walk(node, place):
        if part.get('type') == 'Pretrained' and part.get('checkpoint'):
            yield where, str(part['checkpoint'])


# --- data ------------------------------------------------------------------------------------


def check_dataset(dataset: dict, split: str) -> None:
    """Check that the files of one data set are there, as far as its config dict says where.

    Args:
        dataset: Config dict of a data set, not of a wrapper.
        split: ``train``, ``val`` or ``test``, for messages.
    """
    kind = kind_of(dataset)
    prefix, root = dataset.get('data_prefix') or {}, dataset.get('data_root')
    if kind in _DOWNLOADED:
        return
    if root and not Path(root).is_dir():
        raise UserError(
            f'data of {split}: no folder {root} (from {os.getcwd()}); set dataset.data_root'
        )
    if isinstance(prefix, dict) and ('seg_map_path' in prefix or takes_masks(dataset)):
        _check_segmentation(dataset, split, Path(root or ''), prefix)
    elif kind in map_files.KEYS:
        map_files.pairs_of(dataset, split)
    elif kind in coco.KINDS:
        coco.check_paths(dataset, split)
    elif kind in panoptic.KINDS:
        panoptic.check_paths(dataset, split)
    elif kind in geo_samples.KINDS:
        geo_samples.check_pipeline(dataset.get('pipeline') or (), kind)
        geo_samples.check_installed()
    elif not dataset.get('with_label', True):
        if split != 'test':
            raise UserError(f'data of {split}: with_label=False is for tests alone')
        if kind == 'ImageFolder':
            list_images(Path(root, prefix or ''), _ann_file(dataset, root))
    elif kind == 'ImageFolder':
        classes = (dataset.get('metainfo') or {}).get('classes') or find_classes(root)
        list_class_files(Path(root, prefix or 'train'), classes, _ann_file(dataset, root))
    elif kind in list_files.KINDS:
        list_files.samples_of(dataset)


def takes_masks(dataset: dict) -> bool:
    """Whether a data set's class pairs images with masks, as far as that is known of it."""
    return kind_of(dataset) in _SUFFIXES


def _ann_file(dataset: dict, root: str | Path) -> str | None:
    """The path of a data set's list of names, if it has one."""
    return str(Path(root, dataset['ann_file'])) if dataset.get('ann_file') else None


def _check_segmentation(dataset: dict, split: str, root: Path, prefix: dict) -> None:
    """Every image must have its mask. Classes with naming rules of their own are left to them."""
    kind = kind_of(dataset)
    bare = 'seg_map_path' not in prefix
    if bare and split != 'test':
        raise UserError(
            f'data of {split}: no data_prefix.seg_map_path; only a test can do without masks')
    images, masks = (root / str(prefix.get(key) or '') for key in ('img_path', 'seg_map_path'))
    for folder, key in ((images, 'img_path'), (masks, 'seg_map_path')):
        if not folder.is_dir():
            way = '; images without masks: --no-labels' if split == 'test' and key[0] == 's' else ''
            raise UserError(f'data of {split}: no folder {folder} (data_prefix.{key}){way}')
    listing = _ann_file(dataset, root)
    if listing and kind != 'SegFolder':  # mmseg's takes any name, and fails when it is read
        read_names(listing)
    if kind not in _SUFFIXES:
        return
    image_suffix = dataset.get('img_suffix', _SUFFIXES[kind][0])
    mask_suffix = dataset.get('seg_map_suffix', _SUFFIXES[kind][1])
    pairs, _ = pair_files(
        str(images), None if bare else str(masks), image_suffix, mask_suffix, listing,
        ignore_list_suffix=kind == 'SegFolder',
    )
    if bare:
        return
    lacking = [image for image, mask in pairs if mask is None]
    if len(lacking) == len(pairs):
        raise UserError(
            f'data of {split}: no mask in {masks} for any of the {len(pairs)} images in {images} '
            f'(looked for {mask_suffix}, e.g. for {Path(lacking[0]).name})'
        )
    if lacking:
        raise UserError(
            f'data of {split}: {len(lacking)} of {len(pairs)} images have no mask in {masks}, '
            f'e.g. {lacking[0]}'
        )
