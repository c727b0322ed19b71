"""Checkpoints and deltas: files that hold only what was tuned or cannot be rebuilt.

Runs write checkpoints without the frozen tensors that come from the pretrained weights
(:func:`reduce`); backbones complete them by themselves when they are loaded
(:mod:`vpt_dense.weights.base`). A *delta* is a ``.safetensors`` file of the same tensors, without
the state of the optimizer, whose metadata says what it is.
"""

import contextlib
import dataclasses
import difflib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from vpt_dense import building, config, few_bits, params, pretraining, safe_files, shipped
from vpt_dense.adapters import merge_adapters
from vpt_dense.errors import UserError
from vpt_dense.prompts import FoldedPrompt
from vpt_dense.tuning import method_of
from vpt_dense.weights import checkpoints, stored_config
from vpt_dense.weights.base import (
    KEY,
    Base,
    FrozenBase,
    fingerprint,
    frozen_bases,
    is_address,
)

#: The value of ``format`` in the metadata of a delta.
FORMAT = f'{safe_files.DELTA} 1'

#: What a delta takes over from the meta information of a checkpoint.
_META = (
    'iter', 'epoch', 'seed', 'experiment_name', 'dataset_meta', 'metric', 'run_id', 'versions',
)  # fmt: skip

#: Settings of a model that do not change what its weights mean.
_INDIFFERENT = (
    'init_cfg', 'train_cfg', 'test_cfg', 'memory', 'frozen_dtype', 'prompts_as',
)  # fmt: skip

#: State dicts of a run's checkpoint, and what stands before the model's names in them.
_STATES = (('state_dict', ''), ('ema_state_dict', 'module.'))


# --- checkpoints of runs ---------------------------------------------------------------------


def reduce(model: nn.Module, checkpoint: dict) -> str:
    """Leave out of a checkpoint what its model's pretrained weights give, in place.

    That is, the frozen tensors of a backbone if they are still what its ``init_cfg`` loaded. In
    their place the checkpoint says where they come from (:class:`vpt_dense.weights.base.Base`).

    Args:
        model: The model that the checkpoint is of, wrapped or not.
        checkpoint: With ``state_dict``, and ``ema_state_dict`` if the run has one.

    Returns:
        One line: what the checkpoint holds, and why it is whole if it is although something is
        frozen.
    """
    model = params.unwrap(model)
    whole = checkpoint['state_dict']
    whole = (len(whole), size(whole))
    notes = []
    for prefix, backbone in frozen_bases(model):
        if not backbone.frozen_names:
            continue
        if backbone.base is None:
            notes.append('init_cfg names no pretrained weights that could give its frozen tensors')
            continue
        places = [
            (checkpoint[key], outer + prefix) for key, outer in _STATES if key in checkpoint
        ]
        # All or none: EMA exchanges the two state dicts, name by name.
        found = [backbone.rebuilt_names(state, place) for state, place in places]
        if None in found:
            notes.append('frozen tensors have changed since the pretrained weights were loaded')
            continue
        for (state, place), names in zip(places, found, strict=True):
            for name in names:
                del state[place + name]
            state[place + KEY] = backbone.base.to_tensor()
    count, megabytes = len(checkpoint['state_dict']), size(checkpoint['state_dict']) / 1e6
    if (count, megabytes) == (whole[0], whole[1] / 1e6):
        line = f'checkpoints hold the whole model: {count:,} tensors, {megabytes:,.1f} MB'
    else:
        line = (
            f'checkpoints hold {count:,} tensors, {megabytes:,.1f} MB '
            f'(the whole model: {whole[1] / 1e6:,.1f} MB)'
        )
    return '; '.join([line, *(f'with the frozen backbone, as {note}' for note in notes)])


def complete(model: nn.Module, checkpoint: dict, path: str) -> None:
    """Put back, in place, what :func:`reduce` left out, once for all state dicts.

    Args:
        model: The model that is to be loaded, without wrappers.
        checkpoint: With ``state_dict``, its names without a wrapper's prefix; or bare.
        path: For messages.

    Raises:
        UserError: If the pretrained weights are absent or others.
    """
    state = checkpoint.get('state_dict', checkpoint)
    averaged = checkpoint.get('ema_state_dict')
    for prefix, backbone in frozen_bases(model):
        record = state.get(prefix + KEY)
        if record is None:
            continue
        there = set(state)
        try:
            backbone.complete(state, prefix)
        except UserError as error:
            raise UserError(f'checkpoint {path}: {error}') from error
        other = None if averaged is None else averaged.get(f'module.{prefix}{KEY}')
        if other is not None and torch.equal(other, record):
            del averaged[f'module.{prefix}{KEY}']
            averaged.update({f'module.{name}': state[name] for name in set(state) - there})


def size(tensors: dict[str, Tensor]) -> int:
    """Bytes that tensors take on disk."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


# --- files -----------------------------------------------------------------------------------


def read(path: str, bare: bool = False) -> dict:
    """Read a checkpoint, whole, of a run or a delta.

    Args:
        path: The file.
        bare: Whether it may be a state dict and nothing else.

    Returns:
        ``state_dict`` (names without ``module.``) and ``meta``; the rest of it is left out.

    Raises:
        UserError: If it is none.
    """
    return _parts(checkpoints.read(path), path, bare)


def _parts(content: Any, path: str, bare: bool) -> dict:
    state = content.get('state_dict', content) if isinstance(content, dict) else None
    tensors = list(state.values()) if isinstance(state, dict) else []
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise UserError(f'checkpoint {path} holds no state_dict of a model')
    if state is content and not bare:
        raise UserError(
            f'checkpoint {path} holds no state_dict of a model, but tensors and nothing else; if '
            'they are a whole model, tools/delta.py extract takes them with --config'
        )
    meta = None if state is content else content.get('meta')
    return dict(
        state_dict={name.removeprefix('module.'): tensor for name, tensor in state.items()},
        meta=dict(meta) if isinstance(meta, dict) else {},
    )


def is_delta(checkpoint: dict) -> bool:
    """Whether a checkpoint, as :func:`read` returns it, is a delta: what it leaves out is gone.

    Files that ``merge`` wrote before version 0.1 call themselves one.
    """
    meta = checkpoint['meta']
    return meta.get('format') == FORMAT and all(
        prefix + KEY in checkpoint['state_dict'] for prefix in meta.get('bases') or {}
    )


def extract(
    path: str, config_file: str | None = None, base: str | None = None, method: str | None = None
) -> dict:
    """Reduce a checkpoint to a delta.

    Args:
        path: A whole checkpoint, one of a run, or a delta.
        config_file: The config that it was trained with. None: the one inside it.
        method: Its method, if that config is a recipe.
        base: The pretrained weights, where they are not at the place that the config names.

    Returns:
        ``state_dict`` and ``meta``, the metadata of a delta: ``format``, ``cfg`` (the config),
        ``method``, ``counts``, ``bases`` and what is known of ``metric``, ``iter``, ``epoch``,
        ``seed``, ``experiment_name``, ``dataset_meta``, ``run_id`` (of the process that wrote the
        checkpoint), ``versions`` (that it ran with) and ``licence`` (of the pretrained weights).

    Raises:
        UserError: If the checkpoint is not of this config, by names and shapes or by what the
            config in it says; or its frozen tensors are not those of the pretrained weights: both
            fingerprints are named.
    """
    checkpoint = read(path, bare=config_file is not None)
    state, old = checkpoint['state_dict'], checkpoint['meta']
    cfg, text = _config(checkpoint, path, config_file, method)
    model = building.build_model(cfg, 'meta')
    _check_tensors(model, state, path)
    bases = {}
    for prefix, backbone in frozen_bases(model):
        if prefix + KEY in state:
            bases[prefix] = Base.from_tensor(state.pop(prefix + KEY)).without_path()
        elif backbone.frozen_names:
            known = old.get('bases')
            record = known.get(prefix) if isinstance(known, dict) else None
            frozen = {name: state[prefix + name] for name in backbone.frozen_names}
            if record and fingerprint(frozen) == Base.from_dict(record).sha256:
                bases[prefix], names = Base.from_dict(record), backbone.frozen_names
            else:
                bases[prefix], names = _identify(cfg, prefix, state, path, base)
            for name in names:
                del state[prefix + name]
    counts = params.report(model)
    backbone = cfg.model.get('backbone') or {}
    meta = {key: old[key] for key in _META if old.get(key) is not None}
    if 'versions' not in meta:  # older checkpoints name two
        versions = {n: old[f'{n}_version'] for n in ('mmengine', 'vpt_dense')
                    if f'{n}_version' in old}  # fmt: skip
        meta |= dict(versions=versions) if versions else {}
    metric = _metric(Path(path), meta)
    if metric:
        meta['metric'] = metric
    meta.update(
        format=FORMAT,
        cfg=text,
        method=method_of(backbone, getattr(model, 'backbone', None)),
        counts={key: counts[key] for key in ('trainable', 'total', 'percent')},
        bases={prefix: dataclasses.asdict(record) for prefix, record in bases.items()},
    )
    weights = pretraining.of_config(backbone)
    if weights is not None:
        meta['licence'] = pretraining.licence_note(weights)
    state.update({prefix + KEY: record.to_tensor() for prefix, record in bases.items()})
    return dict(state_dict=state, meta=meta)


def write(delta: dict, path: str) -> None:
    """Write a delta, as :func:`extract` returns it, to a ``.safetensors`` file.

    Equal deltas give equal bytes.

    Raises:
        UserError: If the name has another ending, or the file cannot be written.
    """
    if Path(path).suffix != '.safetensors':
        raise UserError(f'{path}: deltas are .safetensors files, give it that ending')
    meta = {
        key: value if key in ('format', 'cfg') else json.dumps(
            value, sort_keys=True, ensure_ascii=False, default=lambda odd: odd.tolist()
        )
        for key, value in delta['meta'].items()
    }
    safe_files.write_tensors(few_bits.pack(delta['state_dict']), path, meta)


def merge(
    path: str, base: str | None = None, config_file: str | None = None, method: str | None = None
) -> dict:
    """Complete a delta, or a checkpoint of a run, with its pretrained weights.

    Args:
        path: The delta.
        base: The pretrained weights. None: from where the config or the delta says.
        config_file: The config that it was trained with. None: the one inside it.
        method: Its method, if that config is a recipe.

    Returns:
        A plain checkpoint: ``state_dict`` with all tensors of the model, and ``meta``.

    Raises:
        UserError: If the pretrained weights are absent or others, or the delta is not of its
            config.
    """
    checkpoint = read(path, bare=config_file is not None)
    state, meta = checkpoint['state_dict'], checkpoint['meta']
    cfg, meta['cfg'] = _config(checkpoint, path, config_file, method)
    model = load(cfg, checkpoint, path, base, meta)
    meta.pop('format', None)  # it is no delta any more
    wanted = model.state_dict()
    return dict(state_dict={name: state[name] for name in wanted if name in state}, meta=meta)


def load(
    cfg: Config, checkpoint: dict, path: str, base: str | None = None, meta: dict | None = None
) -> nn.Module:
    """Build the model of a config and load a checkpoint into it.

    Args:
        cfg: A whole config.
        checkpoint: As :func:`read` returns it; its state dict is completed in place.
        path: For messages.
        base: The pretrained weights. None: from where the config or the checkpoint says.
        meta: Gets the identity of the frozen tensors, ``bases``.

    Returns:
        The model in eval mode on the CPU.

    Raises:
        UserError: As for :func:`merge`.
    """
    model = building.build_model(cfg)
    state = checkpoint['state_dict']
    bases = {}
    for prefix, backbone in frozen_bases(model):
        if base is not None:
            backbone.init_cfg = rebased(backbone.init_cfg, base)
        if prefix + KEY in state:
            record = Base.from_tensor(state[prefix + KEY]).without_path()
            bases[prefix] = dataclasses.asdict(record)
    if meta is not None and bases:
        meta['bases'] = bases
    complete(model, checkpoint, path)
    checkpoints.load_strict(model, checkpoint, path)
    return model.eval()


def rebased(init_cfg: dict | None, base: str) -> dict:
    """The ``init_cfg`` of a backbone whose pretrained weights lie elsewhere.

    Raises:
        UserError: If ``base`` is a path at which there is no file of weights.
    """
    if not is_address(base):
        safe_files.check(base)
    kept = init_cfg if isinstance(init_cfg, dict) and init_cfg.get('checkpoint') else {}
    return {**kept, 'type': 'Pretrained', 'checkpoint': base}


def _config(
    checkpoint: dict, path: str, config_file: str | None, method: str | None
) -> tuple[Config, str]:
    """The config that a checkpoint is of, and its text; the text inside is kept as it is."""
    if method is not None and config_file is None:
        raise UserError(f'--method {method} is for a recipe; name it with --config')
    if config_file is not None:
        cfg = config.load(config_file, method=method)
        _check_settings(cfg, checkpoint, path, config_file)
        return cfg, cfg.pretty_text
    text = checkpoint['meta'].get('cfg')
    cfg = stored_config.parse(text, path)
    if 'model' not in cfg:
        raise UserError(f'checkpoint {path}: the config in it has no model; name its config file')
    return cfg, text


def other_setting(cfg: Config, checkpoint: dict, path: str) -> str:
    """The place where a config's model differs from that of a checkpoint's training.

    No tensor tells of LoRA's alpha.

    Args:
        cfg: A config.
        checkpoint: With the config of its training in ``meta.cfg``.
        path: For messages.

    Returns:
        The first place that differs, dotted, with both values; empty if there is none, or the
        checkpoint does not say.
    """
    try:
        own = stored_config.parse((checkpoint.get('meta') or {}).get('cfg'), path)
    except UserError:  # none, or more than plain data
        return ''
    model = cfg.get('model') or {}
    model = model.get('module') or model  # inside test-time augmentation
    return stored_config.difference(own.get('model') or {}, model, 'model', _INDIFFERENT)


def _check_settings(cfg: Config, checkpoint: dict, path: str, config_file: str) -> None:
    """Refuse a config that differs from the one in a checkpoint."""
    key = other_setting(cfg, checkpoint, path)
    if key:
        raise UserError(
            f'--config {config_file} is not what checkpoint {path} was trained with: the two '
            f'differ in {key}; leave --config out, the checkpoint holds its own'
        )


def _check_tensors(model: nn.Module, state: dict, path: str) -> None:
    """Compare names and shapes of a checkpoint with those of a model without memory."""
    own = model.state_dict()
    left_out = {
        prefix + name for prefix, backbone in frozen_bases(model) if prefix + KEY in state
        for name in backbone.frozen_names
    }
    absent = [
        name for name in own
        if name not in state and name not in left_out and not name.endswith('num_batches_tracked')
    ]
    more = [name for name in state if name not in own and not name.endswith(KEY)]
    others = [
        f'{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}'
        for name, tensor in own.items() if name in state and state[name].shape != tensor.shape
    ]
    found = [
        f'{len(names)} tensors {what} ({names[0]}{", ..." if names[1:] else ""})'
        for what, names in (
            ('lack', absent), ('are too many', more), ('are of other shapes', others))
        if names
    ]
    if found:
        raise UserError(
            f'checkpoint {path} is not of this config: {", ".join(found)}; name its own with '
            '--config'
        )


def _identify(
    cfg: Config, prefix: str, state: dict, path: str, base: str | None
) -> tuple[Base, frozenset[str]]:
    """Find the base of a backbone by loading its pretrained weights, and compare the tensors."""
    backbone: FrozenBase = dict(frozen_bases(building.build_model(cfg)))[prefix]
    init_cfg = backbone.init_cfg if isinstance(backbone.init_cfg, dict) else {}
    source = base or init_cfg.get('checkpoint')
    if source is None:
        raise UserError(
            f'checkpoint {path}: its config names no pretrained weights (init_cfg) that could give '
            'the frozen tensors; name them with --base, or keep the whole checkpoint'
        )
    if base is not None:
        backbone.init_cfg = rebased(init_cfg, base)
    backbone.load_base(source)
    names = backbone.rebuilt_names(state, prefix)
    if names is None:
        own = backbone.state_dict()
        there = {n: state[prefix + n] for n in own if n in backbone.frozen_names}
        raise UserError(
            f'checkpoint {path}: its frozen tensors (SHA-256 {fingerprint(there)}) are not those '
            f'of {source} ({fingerprint({name: own[name] for name in there})}); name the weights '
            'that it was trained on with --base, or keep the whole checkpoint'
        )
    record = dataclasses.replace(
        backbone.base, checkpoint=init_cfg.get('checkpoint') or source
    )
    return record.without_path(), names


def _metric(path: Path, meta: dict) -> dict[str, float] | None:
    """The results of a run at this checkpoint, from ``evaluations.json`` beside it.

    The id tells whether it is of this run: others may have evaluated there at the same iteration.
    """
    if not meta.get('run_id'):
        return None
    try:
        records = json.loads(path.with_name('evaluations.json').read_text(encoding='utf-8'))
        for record in records:
            if record['iter'] == meta['iter'] and record.get('run_id') == meta['run_id']:
                return {
                    name: value for name, value in record['metrics'].items()
                    if isinstance(value, (int, float)) and not name.endswith('time')
                }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


# --- what is inside, what differs ------------------------------------------------------------


def describe(path: str) -> list[tuple[str, str]]:
    """A description of a checkpoint, as (label, text) rows."""
    checkpoint = _parts(safe_files.read(path), path, False)
    state, meta = checkpoint['state_dict'], checkpoint['meta']
    method = meta.get('method')
    if not isinstance(method, dict) and meta.get('cfg'):
        with contextlib.suppress(UserError):  # more than plain data: it is not needed here
            backbone = stored_config.parse(meta['cfg'], path).get('model', {}).get('backbone', {})
            method = {**method_of(backbone, None), 'trainable': backbone.get('trainable')}
    records = {
        name: Base.from_tensor(tensor) for name, tensor in state.items() if name.endswith(KEY)
    }
    kind = meta['format'] if is_delta(checkpoint) else (
        'checkpoint of a run' if records else 'whole checkpoint')
    if meta.get('format') == safe_files.PLAIN_DELTA:
        kind = meta['format']
        for name, record in meta['backbones'].items():  # a model of one's own may have several
            records[name + KEY] = Base.from_dict(record['base'])
            method, meta['licence'] = record['method'], record['licence'] or None
    rows = [
        ('file', f'{path}, {shipped.place(path).stat().st_size / 1e6:,.2f} MB'),
        ('format', kind),
    ]
    if method:
        rows.append(('prompt', _brief(method.get('prompt')) or 'none'))
        if method.get('image_prompt'):
            rows.append(('image prompt', _brief(method['image_prompt'])))
        rows += [('adapter', _brief(adapter)) for adapter in method.get('adapters') or []]
        rows.append(('trainable', str(method.get('trainable', 'by default'))))
    for record in records.values():
        rows += [
            ('base', f'{record.checkpoint or "not named"} ({record.layout or "no"} layout)'),
            ('base SHA-256', f'{record.sha256} of {record.tensors} frozen tensors, '
                             f'{record.parameters:,} parameters'),
            ('backbone', record.arch),
        ]
    if isinstance(meta.get('licence'), str):
        rows.append(('licence of the base', meta['licence']))
    counts = meta.get('counts')
    if isinstance(counts, dict) and {'trainable', 'total', 'percent'} <= counts.keys():
        share = params.format_percent(counts['percent'])
        rows.append(
            ('parameters', f'{counts["trainable"]:,} trainable of {counts["total"]:,} ({share})'))
    if isinstance(meta.get('metric'), dict):
        rows.append(('metric', _brief(meta['metric'])))
    rows += [(key, str(meta[key])) for key in ('iter', 'epoch', 'seed') if key in meta]
    if isinstance(meta.get('versions'), dict):
        rows.append(('versions', _brief(meta['versions'])))
    tensors = {name: tensor for name, tensor in state.items() if name not in records}
    stored = few_bits.pack(tensors) if is_delta(checkpoint) else tensors
    rows.append(('tensors', f'{len(tensors):,}, {size(stored) / 1e6:,.2f} MB'))
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(params.part_of(name), []).append(tensor)
    rows += [
        (f'  {part}', f'{len(group):,}, {sum(t.numel() for t in group):,} numbers')
        for part, group in parts.items()
    ]
    return rows


def differences(first: str, second: str, weights_only: bool = False) -> list[str]:
    """The differences between two checkpoints, a line each; empty: there are none.

    Configs and metadata are compared as text; tensors by name, then shape and type, then value:
    the largest absolute difference, and that relative to the largest number of the first. NaN
    equals NaN. The log of a run (``message_hub``) is not compared.

    Args:
        first: A checkpoint, a delta or a bare state dict.
        second: Another.
        weights_only: Compare the weights of the models alone; of frozen bases their SHA-256.
    """
    paths = first, second
    contents = [safe_files.read(path) for path in paths]
    (a, b) = (_parts(content, path, True) for content, path in zip(contents, paths, strict=True))
    lines = []
    for key in sorted(a['meta'].keys() | b['meta'].keys()) if not weights_only else ():
        texts = [_lines(checkpoint['meta'].get(key)) for checkpoint in (a, b)]
        changed = [
            line for line in difflib.unified_diff(*texts, n=0, lineterm='')
            if not line.startswith(('---', '+++', '@@'))
        ]
        lines += [f'{key}: {line}' for line in changed]
    sides = [a['state_dict'], b['state_dict']]
    if not weights_only:  # optimizer, schedules, averages
        for side, content in zip(sides, contents, strict=True):
            if 'state_dict' in content:
                more = set(content) - {'state_dict', 'meta', 'message_hub'}
                side.update(leaf for key in more for leaf in _leaves(content[key], key))
    for name in sorted(sides[0].keys() | sides[1].keys()):
        only = [path for path, side in zip(paths, sides, strict=True) if name in side]
        if len(only) == 1:
            lines.append(f'{name}: only in {only[0]}')
        elif name.rpartition('.')[2] == KEY:
            left, right = (
                dataclasses.asdict(Base.from_tensor(side[name]).without_path()) for side in sides)
            keys = ['sha256'] if weights_only else list(left)
            lines += [
                f'{name}: {k}: {left[k]!r} and {right[k]!r}' for k in keys if left[k] != right[k]]
        else:
            told = _difference(sides[0][name], sides[1][name])
            lines += [f'{name}: {told}'] if told else []
    return lines


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """All that is in nested dicts and lists, with its place."""
    if isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            yield from _leaves(item, f'{place}.{key}')
    else:
        yield place, value


def _difference(x: Any, y: Any) -> str:
    """The difference between two tensors, or other values; empty: there is none."""
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        same = type(x) is type(y) and (x == y or (x != x and y != y))
        return '' if same else f'{_told(x)} and {_told(y)}'
    kinds = [f'{tuple(t.shape)} {str(t.dtype).removeprefix("torch.")}' for t in (x, y)]
    if kinds[0] != kinds[1]:
        return f'{kinds[0]} and {kinds[1]}'
    others = ~((x == y) | ((x != x) & (y != y)))  # NaN alone is not itself
    if not others.any():
        return ''
    gap = (x.double() - y.double()).abs()[others].max().item()
    if not math.isfinite(gap):
        return 'differs, one is not finite where the other is'
    largest = x.double().nan_to_num(0, 0, 0).abs().max().item()
    return f'differs by at most {gap:.3g} ({gap / largest if largest else math.inf:.2g} relative)'


def _told(value: Any) -> str:
    return f'a tensor of {tuple(value.shape)}' if isinstance(value, Tensor) else repr(value)[:80]


def _lines(value: Any) -> list[str]:
    if value is None:
        return []
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text.splitlines()


def _brief(settings: Any) -> str:
    return ', '.join(f'{key}={value}' for key, value in (settings or {}).items())


# --- deployment ------------------------------------------------------------------------------


def fold(
    path: str, base: str | None = None, config_file: str | None = None, method: str | None = None
) -> tuple[dict, str]:
    """Merge the adapters of a checkpoint into its weights, and turn prompts into keys and values.

    Exact for adapters that are linear maps of one layer
    (:attr:`vpt_dense.adapters.Adapter.mergeable`), and for prompts where their outputs are thrown
    away, that is, where they act on the other tokens through their keys and values alone.
    Texts of classes, whose tower was trained, become constants. Everything else is refused. Merged
    weights are float32, also those of a run with ``frozen_dtype``, whose rounding would lose small
    changes.

    Args:
        path: A delta, a checkpoint of a run or a whole one.
        base: The pretrained weights. None: from where the config or the checkpoint says.
        config_file: The config that it was trained with. None: the one inside it.
        method: Its method, if that config is a recipe.

    Returns:
        A whole checkpoint, and the text of the config that loads it: the backbone has no adapters,
        and a :class:`vpt_dense.prompts.FoldedPrompt` for its prompt if it had one; nothing of the
        training's run is in it, and paths are as seen from the current folder.

    Raises:
        UserError: If there is nothing of both, or something cannot be folded or merged; the message
            says why.
    """
    checkpoint = read(path, bare=config_file is not None)
    cfg, _ = _config(checkpoint, path, config_file, method)
    if cfg.model.get('backbone', {}).get('adapters'):
        cfg.model.backbone.pop('frozen_dtype', None)
    model = load(cfg, checkpoint, path, base)
    backbone = getattr(model, 'backbone', None)
    prompt = getattr(backbone, 'prompt', None)
    adapters = getattr(backbone, 'adapters', None)
    texts = [(key, head) for key, head in model.named_children()
             if getattr(head, 'text', None) is not None and hasattr(head, 'fold_texts')]
    if prompt is None and not adapters and not texts:
        raise UserError(
            f'{path} has no prompt to fold and no adapters to merge; tools/delta.py merge '
            'completes it'
        )
    if adapters:
        try:
            merge_adapters(backbone)
        except ValueError as error:
            raise UserError(f'{path}: {error}; tools/delta.py merge keeps them all') from error
        cfg.model.backbone.pop('adapters')
    folded = None if prompt is None else fold_prompt(backbone, path)  # it may read the texts'
    for key, head in texts:
        head.fold_texts()
        cfg.model[key].templates = list(head.templates)
        for part in ('prompt', 'adapters', 'trainable'):
            cfg.model[key].text.pop(part, None)
    state = model.state_dict()
    if folded is not None:
        keys, values, layers = folded
        place = 'backbone.prompt.'
        state = {n: t for n, t in state.items() if not n.startswith(place)}
        state |= {f'{place}keys': keys, f'{place}values': values}
        cfg.model.backbone.prompt = dict(
            type='vpt_dense.FoldedPrompt', layers=layers, num_tokens=keys.shape[2],
        )
    cfg.model.backbone.trainable = []
    for key, head in model.named_children():
        if hasattr(head, 'set_classes'):  # other classes are computed by the weights of texts
            cfg.model[key].text.setdefault('init_cfg', cfg.model.backbone.get('init_cfg'))
    cfg.model.backbone.init_cfg = None
    stored_config.forget_run(cfg)
    meta = {**checkpoint['meta'], 'cfg': cfg.pretty_text}
    for key in ('format', 'bases', 'method', 'counts'):
        meta.pop(key, None)
    return dict(state_dict=state, meta=meta), cfg.pretty_text


def fold_prompt(backbone: nn.Module, path: str) -> tuple[Tensor, Tensor, list[int]]:
    """Turn a backbone's prompt into keys and values.

    Args:
        backbone: With a prompt.
        path: What it is of, for messages.

    Returns:
        Keys and values, each (layers, heads, P, C / heads), float32, and the layers.

    Raises:
        UserError: If they are not all that the prompt does.
    """
    prompt, name = backbone.prompt, type(backbone.prompt).__name__
    if not FoldedPrompt.needs <= backbone.offers:
        raise UserError(
            f'{path}: prompts are folded in a vision transformer only, this is a '
            f'{type(backbone).__name__}; use tools/delta.py merge'
        )
    if prompt.depends_on_input:
        raise UserError(
            f'{path}: {name} makes its tokens from the image, they have no keys '
            'and values that could be stored; use tools/delta.py merge'
        )
    folded = {}
    half = backbone.frozen_dtype
    with torch.no_grad(), torch.autocast('cpu', half, enabled=half is not None):
        block, *_ = blocks = backbone.block_list()
        x = block.norm1.weight.new_zeros(1, 1, backbone.embed_dims)  # tells type and device only
        prepared = prompt.prepare(backbone.embed_patches)
        for i in range(len(blocks)):
            if i in backbone.keys_values_layers:
                folded[i] = backbone.prompt_keys_values(x, i)
            elif (tokens := prompt(x, i, prepared)) is not None and tokens.shape[1]:
                raise UserError(
                    f'{path}: prompts that enter block {i} flow on through the blocks behind it as '
                    'tokens, so that keys and values are not all they do (VPT-shallow, a depth '
                    "range with keep_outputs=True, prompts_as='tokens', or a pool of prompts); use "
                    'tools/delta.py merge'
                )
            elif prompt.keys_values(i) is not None:
                folded[i] = prompt.keys_values(i)
    sets = max((keys.shape[0] for keys, _ in folded.values()), default=1)
    if sets > 1:
        raise UserError(
            f'{path}: the {sets} sets of {name} have keys and values of their own; use '
            'tools/delta.py merge'
        )
    if len({keys.shape for keys, _ in folded.values()}) != 1:
        raise UserError(
            f'{path}: {name} has not the same number of keys in all blocks that it enters, which '
            'a folded prompt needs; use tools/delta.py merge'
        )
    keys, values = (
        torch.cat([pair[k] for pair in folded.values()]).float().contiguous() for k in (0, 1)
    )
    return keys, values, list(folded)


def put_folded(backbone: nn.Module, keys: Tensor, values: Tensor, layers: list[int]) -> None:
    """Put what :func:`fold_prompt` returned in the place of a backbone's prompt."""
    prompt = FoldedPrompt(
        *backbone.sites(), layers, num_tokens=keys.shape[2])
    prompt.keys.copy_(keys)
    prompt.values.copy_(values)
    backbone.prompt = prompt.eval()
    backbone.keys_values_layers = list(layers)
