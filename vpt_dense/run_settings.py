"""Keys that are set once: ``img_size``, ``epochs`` or ``iters``, ``warmup``, ``lr`` and others.

Each is a top-level key of a config, or an option of the command line, and goes into all the places
that follow it; then it is gone, so that the finished config says the same when it is loaded again.

A key goes over what the files *below* its own say. What its own file, a file above that one or
another option says itself stays. Where that would be another size or length than the key's, the
two contradict each other, which is refused.
"""

import ast
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict

from vpt_dense import config_files, pretraining, rates, tasks
from vpt_dense.argument_checks import check_count, is_int, is_number, to_pair
from vpt_dense.errors import UserError
from vpt_dense.tree import DATALOADERS, as_list, get, kind_of, placed_datasets, walk

KEYS = ('img_size', 'epochs', 'iters', 'warmup', 'batch_size', *rates.KEYS)

#: Names of settings and variables elsewhere, and the key that moves all that follows them.
MEANT = {
    'crop_size': 'img_size', 'image_size': 'img_size', 'size': 'img_size', 'scale': 'img_size',
    'max_epochs': 'epochs', 'num_epochs': 'epochs', 'max_iters': 'iters', 'num_iters': 'iters',
    'iterations': 'iters', 'warmup_epochs': 'warmup', 'warmup_iters': 'warmup',
    'learning_rate': 'lr', 'base_lr': 'lr', 'wd': 'weight_decay',
}  # fmt: skip

Size = tuple[int, int]  # (height, width) in pixels


def place(cfg: Config, options: Mapping[str, Any] | None = None) -> None:
    """Put the keys of :data:`KEYS` into the places that follow them and remove them, in place.

    - ``img_size``, pixels or (height, width): crops and scales of every pipeline, each by the
      change of its side; ``data_preprocessor.size``; ``model.backbone.img_size``; windows of
      ``model.test_cfg``, whose overlap stays the same share. Segmentation by a vision transformer
      pads test images to whole patches.
    - ``epochs`` or ``iters``: the training loop, the ends of the schedules and what they count by,
      and how often is validated, saved and logged.
    - ``warmup``, epochs or iterations as the loop counts: the warm-up; 0 removes it, and one is
      added to a schedule without. It keeps its share of the length where only that changes.
    - ``batch_size``, images a step and process: ``train_dataloader``, and the other loaders where
      theirs was the same. ``auto_scale_lr`` scales the rate, in configs that have it.
    - ``lr``, ``head_lr``, ``weight_decay``: see :func:`vpt_dense.rates.place`.

    Args:
        cfg: A config whose data sets are merged; ``cfg.filename`` tells what its files say.
        options: What the command line has put into it, dotted key -> value.

    Raises:
        UserError: If a value is none of its kind; if the config contradicts a key, or has nothing
            that a key could set; or the backbone does not take images of that size.
    """
    given = {key: cfg.pop(key) for key in KEYS if cfg.get(key) is not None}
    for key in KEYS:
        cfg.pop(key, None)
    for key, value in given.items():
        if key == 'img_size':
            given[key] = to_pair(f'{key} (pixels, or height and width)', value)
        elif key in rates.KEYS:
            given[key] = rates.check(key, value)
        elif key != 'warmup' or value != 0 or isinstance(value, bool):
            check_count(value, key)
    origins = {key: origin_of(cfg, key, value, options or {}) for key, value in given.items()}
    if 'img_size' in given:
        _place_size(cfg, given['img_size'], origins['img_size'])
    _choose_length(given, origins)
    if {'epochs', 'iters', 'warmup'} & set(given):
        _place_length(cfg, given, origins)
    if 'batch_size' in given:
        _place_batch(cfg, given['batch_size'], origins['batch_size'])
    rates.place(cfg, given, origins)


def trained_size(cfg: Config) -> Size | None:
    """The size of the images that a config trains on, as its pipelines say it."""
    return next((size for _, size in _trained(cfg)), None)


def hint(name: str) -> str:
    """A hint for messages about a variable or unknown key that means one of ours; often empty."""
    return f'; {MEANT[name]} sets all that follows from it' if name in MEANT else ''


# --- who says what ---------------------------------------------------------------------------


#: A file that has them is a config of its own, and no part of one.
_PARTS = ('model', 'train_dataloader', 'train_cfg')


class _Origin(NamedTuple):
    """The place where a key was set."""

    beneath: Mapping | None  # what the files below say; None: not known
    trees: tuple[ast.Module, ...]  # the files from the top down to the one that has the key
    options: frozenset[str]  # dotted places that the command line sets
    files: tuple[Path, ...] = ()  # of the trees

    def says(self, cfg: Config, place: str, *others: Any) -> bool:
        """Whether a value was said beside the key or above it.

        Args:
            cfg: The config.
            place: Dotted.
            *others: What the value may be beside what the files below have there.
        """
        if any(f'{place}.'.startswith(f'{option}.') or option.startswith(f'{place}.')
               for option in self.options):  # fmt: skip
            return True
        names = tuple(place.split('.'))
        if any(config_files.says(tree, names) for tree in self.trees):
            return True
        value = _frozen(get(cfg, place))
        below = [get(self.beneath, place), *others] if self.beneath is not None else [value]
        return value not in map(_frozen, below)

    def wrote(self, place: str, transform: dict, key: str) -> bool:
        """The same of a transform's argument: a pipeline may be made of parts of a base's."""
        if any(f'{place}.{key}.'.startswith(f'{option}.') for option in self.options):
            return True
        if self.beneath is None:
            return False
        frozen = _frozen(transform)
        known = any(_frozen(node) == frozen for name in self.beneath
                    for _, node in walk(self.beneath[name], name))  # fmt: skip
        return not known or any(
            all(value in (_OPEN, frozen.get(name)) for name, value in written.items())
            for tree in self.trees for written in _written(tree, kind_of(transform))
        )  # fmt: skip


def origin_of(cfg: Config, key: str, value: Any, options: Mapping[str, Any]) -> _Origin:
    """Where a key was set.

    Args:
        cfg: The config.
        key: A top-level one.
        value: What it has there.
        options: What the command line has put into the config, dotted key -> value.
    """
    said = frozenset(
        '.'.join((name, *path)) for name, inner in options.items() for path in _paths(inner)
    )
    file = Path(cfg.filename) if cfg.filename else None
    if file is None or not file.is_file():
        return _Origin(None, (), said)
    whole = config_files.content(file)
    found = whole.get(key)
    pair = _pair(found) if key == 'img_size' and found is not None else found
    if pair != value or any(option.partition('.')[0] == key for option in said):
        return _Origin(whole, (), said)  # of the command line, or of a script
    parts = [name for name in _PARTS if name in whole]
    return _origin_at(_trail(file, key, parts), said)


def _origin_at(trail: list[Path], options: frozenset[str]) -> _Origin:
    beneath = {}
    for base in config_files.bases(trail[-1]):
        beneath.update(config_files.content(base))
    return _Origin(beneath, tuple(map(config_files.statements, trail)), options, tuple(trail))


class _Below(NamedTuple):
    """What a file below says of a key that is set above it.

    What it says beside the key is of that value: of 200 iterations with a validation after 200, the
    60 of another file or of the command line have one after 60.
    """

    key: str
    value: Any
    origin: _Origin


def _all_below(file: str | None, keys: Sequence[str], origin: _Origin) -> list[_Below]:
    """What whole configs below an origin say of one of these keys, from the top down."""
    bases = [Path(file)] if origin.beneath is not None else []
    if origin.files:
        bases = config_files.bases(origin.files[-1])
    for base in bases:
        found = config_files.content(base)
        parts = [name for name in _PARTS if name in origin.beneath]
        if all(part in found for part in parts):
            trails = {key: [*origin.files, *_trail(base, key, parts)] for key in keys
                      if found.get(key) is not None}  # fmt: skip
            if trails:
                key = min(trails, key=lambda key: len(trails[key]))
                lower = _origin_at(trails[key], origin.options)
                return [_Below(key, found[key], lower), *_all_below(file, keys, lower)]
    return []


def _trail(file: Path, key: str, parts: list[str]) -> list[Path]:
    """The files from this one down to the one that says ``key`` of a whole config."""
    if not config_files.says(config_files.statements(file), (key,)):
        for base in config_files.bases(file):
            found = config_files.content(base)
            if key in found and all(part in found for part in parts):
                return [file, *_trail(base, key, parts)]
    return [file]


_OPEN = object()  # a value that is no literal


def _written(tree: ast.AST, kind: str) -> Iterator[dict[str, Any]]:
    """The arguments of the ``dict(type=KIND, ...)`` that a file writes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            pairs = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        elif isinstance(node, ast.Dict):
            pairs = {getattr(k, 'value', None): v
                     for k, v in zip(node.keys, node.values, strict=True)}  # fmt: skip
        else:
            continue
        named = pairs.pop('type', None)
        name = next((getattr(named, part) for part in ('value', 'id', 'attr')
                     if isinstance(getattr(named, part, None), str)), '')  # fmt: skip
        if name.rpartition('.')[2] == kind:
            yield {name: _frozen(_literal(value)) for name, value in pairs.items()}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return _OPEN


def _paths(value: Any) -> Iterator[tuple[str, ...]]:
    """The paths to everything in a dict that is no dict."""
    if not isinstance(value, dict) or not value:
        yield ()
        return
    for key, inner in value.items():
        for path in _paths(inner):
            yield (str(key), *path)


def _frozen(value: Any) -> Any:
    """Something that is equal for lists and tuples."""
    if isinstance(value, Mapping):
        return {key: _frozen(inner) for key, inner in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _pair(value: Any) -> Any:
    """(height, width) of a number of pixels, or of such a pair."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


# --- img_size --------------------------------------------------------------------------------


def _sides(value: Any, transform: dict, old: Size, new: Size) -> Any:
    """(height, width)."""
    pair = tuple(v * n // o for v, o, n in zip(_pair(value), old, new, strict=True))
    return _like(value, pair)


def _across(value: Any, transform: dict, old: Size, new: Size) -> Any:
    """(width, height)."""
    return _sides(value, transform, old[::-1], new[::-1])


def _scale(value: Any, transform: dict, old: Size, new: Size) -> Any:
    """(width, height) of an image or, where its ratio stays, limits of its sides; or a list."""
    if isinstance(value, (list, tuple)) and any(isinstance(v, (list, tuple)) for v in value):
        return type(value)(_scale(v, transform, old, new) for v in value)
    if not transform.get('keep_ratio'):
        return _across(value, transform, old, new)
    if not isinstance(value, (list, tuple)):
        value = (value, value)
    long, short = ((f(old), f(new)) for f in (max, min))
    first = value.index(max(value))
    return type(value)(
        v * b // a if isinstance(v, int) and v > 0 else v  # -1 and inf: no limit
        for v, (a, b) in ((v, long if i == first else short) for i, v in enumerate(value))
    )


def _edge(value: Any, transform: dict, old: Size, new: Size) -> Any:
    """Pixels of one edge; where that may be either, a crop still fits in."""
    height, width = (value * n // o for o, n in zip(old, new, strict=True))
    found = {'height': height, 'width': width}
    return found.get(transform.get('edge'), max(height, width))


def _like(old: Any, pair: Size) -> Any:
    """A pair written as the old value was: as one number, if it can be, a list or a tuple."""
    if not isinstance(old, (list, tuple)):
        return pair[0] if pair[0] == pair[1] else pair
    return type(old)(pair)


#: Transforms that make images of one size: their argument, and how they say it.
_CROPS: dict[str, tuple[str, Callable]] = {
    'RandomCrop': ('crop_size', _sides),
    'CenterCrop': ('crop_size', _across),
    'RandomResizedCrop': ('scale', _sides),
    'EfficientNetRandomCrop': ('scale', _sides),
    'EfficientNetCenterCrop': ('crop_size', _sides),
}
#: Others whose argument follows the size.
_FOLLOWING: dict[str, tuple[str, Callable]] = {
    **_CROPS,
    'Resize': ('scale', _scale),
    'RandomResize': ('scale', _scale),
    'ResizeEdge': ('scale', _edge),
    'Pad': ('size', _across),
}
#: What an argument that holds a size is called in transforms that are not among these.
_OTHER = ('crop_size', 'scale', 'scales', 'img_scale', 'img_size', 'size')


def _place_size(cfg: Config, new: Size, origin: _Origin) -> None:
    where, model = 'model', cfg.get('model') or {}
    if model.get('module'):  # inside test-time augmentation
        where, model = 'model.module', model['module']
    backbone = model.get('backbone') or {}
    _check_backbone(backbone, new)
    lower = _all_below(cfg.filename, ('img_size',), origin)
    below = (lower[-1].origin if lower else origin).beneath or {}
    old = next((size for _, size in (*_trained(below), *_trained(cfg))), None)
    if old is None and not cfg.get('train_dataloader'):  # a config for tests alone
        old = get(model, 'data_preprocessor.size') or backbone.get('img_size')
        old = old and _pair(old)
    if old is None:
        raise UserError(
            'img_size: no transform of train_dataloader crops or resizes images to one size, so '
            'that img_size cannot set it; add a RandomCrop (or a Resize) to the pipeline'
        )
    moved = set()
    for place, transform in _transforms(cfg):
        if id(transform) not in moved:
            moved.add(id(transform))
            _move_transform(place, transform, old, new, origin, lower)
    named = [get(origin.beneath, f'pretrained.{part}.img_size')
             for part in ('classifier', 'backbone')]  # fmt: skip
    key = f'{where}.backbone.img_size'
    if 'img_size' in backbone or str(backbone.get('type')).startswith('vpt_dense.'):
        if not origin.says(cfg, key, *named):
            backbone['img_size'] = _like(backbone.get('img_size'), new)
    is_vit = str(backbone.get('type')).endswith('VisionTransformer')
    pads = tasks.is_dense(model) and is_vit and old != new
    for name, node in ((f'{where}.data_preprocessor', model.get('data_preprocessor')),
                       ('data_preprocessor', cfg.get('data_preprocessor'))):  # fmt: skip
        if node and node.get('size') is not None:
            if not origin.says(cfg, f'{name}.size'):
                node['size'] = tuple(new)
            test = node.get('test_cfg') or {}
            if test.get('size') is not None and not origin.says(cfg, f'{name}.test_cfg.size'):
                test['size'] = tuple(new)
            if pads and not {'size', 'size_divisor'} & set(test):
                patch = math.lcm(*_pair(pretraining.patch_size(backbone)))
                node['test_cfg'] = ConfigDict(test, size_divisor=patch)
    _place_windows(cfg, f'{where}.test_cfg', model.get('test_cfg') or {}, new, origin, lower)
    found = [*_trained(cfg), (key, backbone.get('img_size', new)),
             (f'{where}.data_preprocessor.size', get(cfg, f'{where}.data_preprocessor.size')),
             ('data_preprocessor.size', get(cfg, 'data_preprocessor.size'))]  # fmt: skip
    for place, size in found:
        if size is not None and _pair(size) != new:
            raise UserError(
                f'img_size is {new} (height, width), but {place} is {size}, said beside it: say '
                'one of them; img_size sets crops, scales, padding, windows and the positions of '
                'the backbone'
            )


def _check_backbone(backbone: dict, new: Size) -> None:
    kind = kind_of(backbone)
    if kind.endswith('VisionTransformer'):
        patch = _pair(pretraining.patch_size(backbone))
        for side, step in zip(new, patch, strict=True):
            if isinstance(step, int) and step > 0 and side % step:
                near = ' or '.join(str(n) for n in (side // step * step, -(-side // step) * step)
                                   if n)  # fmt: skip
                raise UserError(
                    f'img_size {new} is not a multiple of model.backbone.patch_size {step}: the '
                    f'last rows or columns would be lost; use {near} in place of {side}'
                )
    if kind.endswith('SwinTransformer') and not backbone.get('pad_small_map'):
        window, last = backbone.get('window_size', 7), -(-min(new) // 32)
        if isinstance(window, int) and last < window:
            raise UserError(
                f'img_size {new}: the last map of the Swin would be {last} wide, and its windows '
                f'are {window} (model.backbone.window_size); use {window * 32 - 31} pixels or '
                'more, or model.backbone.pad_small_map=True'
            )


def _transforms(cfg: Mapping | Config) -> Iterator[tuple[str, dict]]:
    """All transforms with their dotted places: of loaders, of ``*_pipeline`` at the top."""
    for name in DATALOADERS:
        for where, dataset in placed_datasets(cfg.get(name), name):
            yield from walk(dataset.get('pipeline') or [], f'{where}.pipeline')
    for name in [name for name in cfg if name.endswith('_pipeline')]:
        yield from walk(cfg[name] or [], name)


def _trained(cfg: Mapping | Config) -> list[tuple[str, Size]]:
    """The sizes of the images that training makes, and where that is said."""
    found = []
    for where, dataset in placed_datasets(cfg.get('train_dataloader'), 'train_dataloader'):
        for i, transform in reversed([*enumerate(dataset.get('pipeline') or ())]):
            key, form = _FOLLOWING.get(kind_of(transform), ('', None))
            exact = kind_of(transform) in _CROPS or (
                kind_of(transform) == 'Resize' and not transform.get('keep_ratio'))
            if exact and transform.get(key) is not None:
                size = _pair(transform[key])
                size = size if form is _sides else size[::-1]
                found.append((f'{where}.pipeline.{i}.{key}', size))
                break
    return found


def _move_transform(
    place: str, transform: dict, old: Size, new: Size, origin: _Origin, lower: list[_Below]
) -> None:
    kind = kind_of(transform)
    if kind in _FOLLOWING:
        key, form = _FOLLOWING[kind]
        if transform.get(key) is None or origin.wrote(place, transform, key):
            return
        old = next((to_pair(each.key, each.value) for each in lower
                    if each.origin.wrote(place, transform, key)), old)  # fmt: skip
        transform[key] = form(transform[key], transform, old, new)
        return
    for key in _OTHER:
        value = transform.get(key)
        if any(isinstance(n, (int, list, tuple)) and n not in (0, 1) for n in as_list(value)):
            if old != new and not origin.wrote(place, transform, key):
                raise UserError(
                    f'img_size: what becomes of {place}.{key} ({value!r}, of {kind}) is not known; '
                    'write a pipeline of your own beside img_size, or set all sizes one by one'
                )


def _place_windows(
    cfg: Config, place: str, test: dict, new: Size, origin: _Origin, lower: list[_Below]
) -> None:  # fmt: skip
    """Windows of test images; neighbours overlap by the same share."""
    crop, stride = test.get('crop_size'), test.get('stride')
    below = next((to_pair(each.key, each.value) for each in lower
                  if each.origin.says(cfg, f'{place}.stride')),
                 get(origin.beneath, f'{place}.crop_size') or crop)  # fmt: skip
    if crop is not None and not origin.says(cfg, f'{place}.crop_size'):
        test['crop_size'] = _like(crop, new)
    if stride is not None and below is not None and not origin.says(cfg, f'{place}.stride'):
        sides = zip(_pair(stride), _pair(test['crop_size']), _pair(below), strict=True)
        test['stride'] = _like(stride, tuple(max(1, _ratio(s, n, o)) for s, n, o in sides))


def _ratio(value: int, new: int, old: int) -> int:
    """Return value * new / old, rounded half up."""
    return (2 * value * new + old) // (2 * old)


# --- epochs, iters, warmup -------------------------------------------------------------------

_LOOPS = {'max_epochs': 'EpochBasedTrainLoop', 'max_iters': 'IterBasedTrainLoop'}
_WARMUPS = ('LinearLR', 'ConstantLR', 'LinearParamScheduler', 'ConstantParamScheduler')


class _Length(NamedTuple):
    """How a length and its warm-up change."""

    old: int
    new: int
    old_warmup: int
    new_warmup: float
    was_by_epoch: bool
    by_epoch: bool
    in_parts: bool = False  # whether schedules are told in parts of epochs

    @property
    def converts(self) -> bool:
        return self.by_epoch != self.was_by_epoch

    def move(self, point: float) -> float:
        """The place of a point of the training in the new one."""
        if point >= self.old or not self.old_warmup:
            moved = point * self.new / self.old
        elif point <= self.old_warmup:
            moved = point * self.new_warmup / self.old_warmup
        else:
            share = (point - self.old_warmup) / (self.old - self.old_warmup)
            moved = self.new_warmup + share * (self.new - self.new_warmup)
        return self.rounded(moved)

    def rounded(self, point: float) -> float:
        """To an integer, if it must be one."""
        if self.in_parts:
            return round(point, 4) if point % 1 else int(point)
        return int(point + 0.5)

    def interval(self, value: int) -> int:
        """The new interval of something that happened at an interval."""
        if not 0 < value <= self.old:
            return value  # never
        if not self.was_by_epoch:
            return max(1, _ratio(value, self.new, self.old))
        if self.by_epoch:
            return min(value, self.new)
        return max(1, _ratio(value, self.new, self.old), self.new // 10)


def _choose_length(given: dict[str, Any], origins: dict[str, _Origin]) -> None:
    """Of two lengths the one that is said above the other; a warm-up from below keeps its share."""
    depths = {key: len(origins[key].trees) for key in ('epochs', 'iters') if key in given}
    if len(depths) == 2:
        if depths['epochs'] == depths['iters']:
            raise UserError(
                f'epochs={given["epochs"]} and iters={given["iters"]} are both said: a training '
                'has one length; leave one of them out'
            )
        del given[max(depths, key=depths.get)]
    key = min(depths, key=depths.get, default=None)
    if key and given.get('warmup') and len(origins['warmup'].trees) > depths[key]:
        beside = config_files.content(origins['warmup'].files[-1])
        said = [beside.get(name) for name in ('epochs', 'iters')]
        length = next((n for n in said if isinstance(n, int) and n > 0), None)
        if length:
            share = _ratio(given['warmup'], given[key], length)
            given['warmup'] = min(max(1, share), given[key] - 1)


def _place_length(cfg: Config, given: dict[str, Any], origins: dict[str, _Origin]) -> None:
    loop = cfg.get('train_cfg')
    said = next((key for key in ('epochs', 'iters') if key in given), 'warmup')
    if not loop:
        raise UserError(f'{said}: the config has no train_cfg that it could set')
    lower = [] if said == 'warmup' else [
        each for each in _all_below(cfg.filename, ('epochs', 'iters'), origins[said])
        if is_int(each.value, 1)]  # fmt: skip
    # The length said beside it as well, schedule and intervals are still those of the one below.
    lowest = lower[-1].origin if lower else origins[said]
    below = None if said == 'warmup' else get(lowest.beneath, 'train_cfg')
    was_by_epoch, old = _length_of(below or loop)
    if old is None:
        was_by_epoch, old = _length_of(loop)
    by_epoch = was_by_epoch if said == 'warmup' else said == 'epochs'
    unit, other = ('max_epochs', 'max_iters') if by_epoch else ('max_iters', 'max_epochs')
    new = given.get(said, old) if said != 'warmup' else old
    for name in (unit, other) if said != 'warmup' else ():
        value = loop.get(name)
        if value is not None and (name, value) != (unit, new):
            if origins[said].says(cfg, f'train_cfg.{name}'):
                raise UserError(
                    f'{said} is {new}, but train_cfg.{name} is {value}, said beside it: say one '
                    f'of them; {said} sets train_cfg, the schedule and the intervals'
                )
    kind = loop.get('type')
    if not isinstance(old, int) or (kind is not None and kind_of(loop) not in _LOOPS.values()):
        raise UserError(
            f'{said}: train_cfg is no EpochBasedTrainLoop with max_epochs and no '
            f'IterBasedTrainLoop with max_iters ({kind!r}); set its own keys'
        )
    def old_of(place: str) -> tuple[int, bool]:
        """The length of which a place was said, and whether it is one of epochs."""
        return next(((each.value, each.key == 'epochs') for each in lower
                     if each.origin.says(cfg, place)), (old, was_by_epoch))  # fmt: skip

    def interval(place: str) -> int:
        old, was_by_epoch = old_of(place)
        return length._replace(old=old, was_by_epoch=was_by_epoch).interval(get(cfg, place))

    of_schedule, by_epochs = old_of('param_scheduler')
    length = _place_schedules(cfg, given, origins, (of_schedule, new, by_epochs, by_epoch))
    origin = origins[said]
    if said == 'warmup':
        return
    loop.pop(other, None)
    loop[unit] = new
    if by_epoch != was_by_epoch:
        loop.pop('by_epoch', None)
        loop['type'] = _LOOPS[unit]
        _count_by(cfg, by_epoch, origin)
    for key in ('val_interval', 'val_begin'):
        if loop.get(key) is not None and not origin.says(cfg, f'train_cfg.{key}'):
            loop[key] = interval(f'train_cfg.{key}')
    if loop.get('dynamic_intervals') and not origin.says(cfg, 'train_cfg.dynamic_intervals'):
        of_them, by_epochs = old_of('train_cfg.dynamic_intervals')
        own = length._replace(old=of_them, was_by_epoch=by_epochs)
        loop['dynamic_intervals'] = [
            (int(own.move(begin) + 0.5), own.interval(each))
            for begin, each in loop['dynamic_intervals']
        ]
    hooks = cfg.get('default_hooks') or {}
    saver, logger = (hooks.get(key) or {} for key in ('checkpoint', 'logger'))
    if saver.get('interval') and not origin.says(cfg, 'default_hooks.checkpoint.interval'):
        saver['interval'] = interval('default_hooks.checkpoint.interval')
    if not by_epoch and not origin.says(cfg, 'default_hooks.logger.interval') and logger:
        every = logger.get('interval', 10)
        logger['interval'] = min(every, max(1, new // 20))


def _length_of(loop: Mapping) -> tuple[bool, Any]:
    """Whether a loop counts epochs, and its length; None: it has none."""
    by_epoch = kind_of(loop) == _LOOPS['max_epochs'] or bool(loop.get('by_epoch'))
    return by_epoch, loop.get('max_epochs' if by_epoch else 'max_iters')


def _count_by(cfg: Config, by_epoch: bool, origin: _Origin) -> None:
    """Make hooks count as the loop does."""
    hooks = cfg.get('default_hooks') or {}
    if hooks.get('checkpoint'):
        hooks['checkpoint']['by_epoch'] = by_epoch
    if hooks.get('logger'):
        hooks['logger']['log_metric_by_epoch'] = by_epoch
    cfg.log_processor = ConfigDict(cfg.get('log_processor') or {}, by_epoch=by_epoch)
    sampler = (cfg.get('train_dataloader') or {}).get('sampler')
    if by_epoch and not origin.says(cfg, 'train_dataloader.sampler'):
        while isinstance(sampler, dict):  # one may be inside another
            if kind_of(sampler) == 'InfiniteSampler':  # it has no epochs
                sampler['type'] = 'DefaultSampler'
            sampler = sampler.get('sampler')


def _place_schedules(
    cfg: Config, given: dict[str, Any], origins: dict[str, _Origin],
    lengths: tuple[int, int, bool, bool],
) -> _Length:  # fmt: skip
    old, new, was_by_epoch, by_epoch = lengths
    said = [key for key in ('warmup', 'epochs', 'iters') if key in given
            and origins[key].says(cfg, 'param_scheduler')]  # fmt: skip
    if 'warmup' in said:
        raise UserError(
            f'warmup is {given["warmup"]}, but param_scheduler is said beside it; say the warm-up '
            'in it, or leave it to a base config'
        )
    if said:
        _check_ends(cfg, said[0], new, by_epoch)
        return _Length(old, new, 0, 0, was_by_epoch, by_epoch)
    _check_units(cfg, given, was_by_epoch, by_epoch)
    parts = [part for _, group in _groups(cfg) for part in group]
    before = max((part['end'] for part in parts if _is_warmup(part, old, was_by_epoch)), default=0)
    in_parts = by_epoch and (
        not was_by_epoch or all(part.get('convert_to_iter_based') for part in parts))
    after = given.get('warmup')
    if after is None:
        share = before * new / old
        after = round(share, 4) if in_parts else max(int(share + 0.5), 1 if before else 0)
        after = after if after < new else 0
    if after >= new:
        raise UserError(
            f'warmup is {after}, but the training has {new} {"epochs" if by_epoch else "iters"}: '
            'nothing would be left after it; say a smaller one'
        )
    length = _Length(old, new, before, after, was_by_epoch, by_epoch, in_parts)
    moved = {}
    for name, group in _groups(cfg):
        parts = [_move(part, length) for part in group]
        if not length.new_warmup:
            parts = [each for part, each in zip(group, parts, strict=True)
                     if not _is_warmup(part, old, was_by_epoch)]  # fmt: skip
        elif not before and group:
            whole = by_epoch and not in_parts  # a first epoch at nothing would be a lost one
            first = ConfigDict(type='LinearLR', start_factor=0.1 if whole else 1e-6, begin=0,
                               end=after, by_epoch=by_epoch)  # fmt: skip
            if in_parts:
                first['convert_to_iter_based'] = True
            parts = [first, *_after(parts, length)]
        moved[name] = parts
    if moved:
        cfg.param_scheduler = moved[''] if '' in moved else ConfigDict(moved)
    elif given.get('warmup'):
        raise UserError(
            f'warmup is {given["warmup"]}, but the config has no param_scheduler to warm up'
        )
    return length


def _groups(cfg: Config) -> list[tuple[str, list[dict]]]:
    """The schedules of each optimizer; of a single one the name is ''."""
    found = cfg.get('param_scheduler') or []
    if isinstance(found, dict) and 'type' not in found:
        return [(name, as_list(part)) for name, part in found.items()]
    return [('', as_list(found))] if found else []


def _is_warmup(part: dict, length: int, by_epoch: bool) -> bool:
    end = part.get('end')
    return (kind_of(part) in _WARMUPS and part.get('by_epoch', True) == by_epoch
            and not part.get('begin') and is_number(end) and 0 < end < length)  # fmt: skip


def _check_units(cfg: Config, given: dict[str, Any], was_by_epoch: bool, by_epoch: bool) -> None:
    """Iterations in a loop over epochs scale with its length, but cannot be told in epochs."""
    for name, group in _groups(cfg):
        for i, part in enumerate(group):
            other = part.get('by_epoch', True) != was_by_epoch
            if other and 'ReduceOnPlateau' not in kind_of(part):
                if 'warmup' in given or by_epoch != was_by_epoch:
                    key = 'warmup' if 'warmup' in given else 'epochs' if by_epoch else 'iters'
                    raise UserError(
                        f'{key}: param_scheduler{name and "."}{name}.{i}.by_epoch is '
                        f'{not was_by_epoch}, and train_cfg counts the other way; give '
                        'param_scheduler of your own, that counts as the loop does'
                    )


def _move(part: dict, length: _Length) -> ConfigDict:
    """A schedule in a training of another length."""
    part = ConfigDict(copy.deepcopy(dict(part)))
    if part.get('by_epoch', True) != length.was_by_epoch:
        length = length._replace(old_warmup=0)  # of the loop's counting
    begin, end, period = part.get('begin', 0), part.get('end'), part.get('T_max')
    for key in ('begin', 'end'):
        if is_number(part.get(key)):
            part[key] = length.move(part[key])
    if is_number(period):
        whole = is_number(end) and period == end - begin
        part['T_max'] = (
            length.rounded(part['end'] - part.get('begin', 0)) if whole else length.move(period))
    for key in ('step_size', 'total_steps', 'milestones', 'periods'):
        value = part.get(key)
        if isinstance(value, (list, tuple)):
            part[key] = [max(1, int(length.move(point) + 0.5)) for point in value]
        elif is_number(value):
            part[key] = max(1, int(value * length.new / length.old + 0.5))
    if length.converts:
        part['by_epoch'] = length.by_epoch
        if length.by_epoch and 'ReduceOnPlateau' not in kind_of(part):
            part['convert_to_iter_based'] = True  # it goes on within an epoch
        else:
            part.pop('convert_to_iter_based', None)
    return part


def _after(parts: list[ConfigDict], length: _Length) -> list[ConfigDict]:
    """Schedules from the beginning, which begin after a new warm-up."""
    for part in parts:
        if not part.get('begin') and 'ReduceOnPlateau' not in kind_of(part):
            if part.get('T_max') is not None and part['T_max'] == part.get('end'):
                part['T_max'] -= length.new_warmup
            part['begin'] = length.new_warmup
    return parts


def _check_ends(cfg: Config, key: str, new: int, by_epoch: bool) -> None:
    """A schedule that was said beside the length ends with it at the latest."""
    for name, group in _groups(cfg):
        for i, part in enumerate(group):
            end = part.get('end')
            if is_number(end) and end > new and part.get('by_epoch', True) == by_epoch:
                raise UserError(
                    f'{key} is {new}, but param_scheduler{name and "."}{name}.{i}.end is {end}, '
                    f'said beside it; say {new} there, or leave param_scheduler to a base config'
                )


# --- batch_size ------------------------------------------------------------------------------


def _place_batch(cfg: Config, new: int, origin: _Origin) -> None:
    loader = cfg.get('train_dataloader')
    if not loader or loader.get('batch_sampler'):
        raise UserError(
            'batch_size: the config has no train_dataloader with a batch_size that it could set'
        )
    old = loader.get('batch_size')
    if old != new and origin.says(cfg, 'train_dataloader.batch_size'):
        raise UserError(
            f'batch_size is {new}, but train_dataloader.batch_size is {old}, said beside it: say '
            'one of them'
        )
    below = get(origin.beneath, 'train_dataloader.batch_size')
    loader['batch_size'] = new
    for name in DATALOADERS[1:]:
        node = cfg.get(name) or {}
        if node.get('batch_size') == (old if below is None else below):
            if not origin.says(cfg, f'{name}.batch_size'):
                node['batch_size'] = new
