"""An ensemble made of deltas that were trained one by one."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from vpt_dense import building, params, tasks
from vpt_dense.checkpoints import deltas
from vpt_dense.ensemble import settings
from vpt_dense.errors import UserError
from vpt_dense.tuning import method_of
from vpt_dense.weights import stored_config
from vpt_dense.weights.base import KEY, Base, frozen_bases


def assemble(paths: Sequence[str]) -> dict:
    """Make one delta of several, whose prompts and heads become the members of an ensemble.

    Args:
        paths: Deltas, or checkpoints of runs without their frozen tensors; each of the same model
            and method on the same pretrained weights.

    Returns:
        ``state_dict`` and ``meta``, a delta as :func:`vpt_dense.checkpoints.deltas.extract` makes
        it; ``meta['cfg']`` is the config of the ensemble and ``meta['members']`` says for each
        member what its file says: ``seed``, ``iter``, ``epoch``, ``metric``, ``experiment_name``,
        ``run_id``, ``versions``.

    Raises:
        UserError: If the files do not belong together; the message names the file.
    """
    if not paths:
        raise UserError('an ensemble needs at least one delta')
    checkpoints = [deltas.read(path) for path in paths]
    configs = [
        stored_config.parse(checkpoint['meta'].get('cfg'), path)
        for checkpoint, path in zip(checkpoints, paths, strict=True)
    ]
    for path, checkpoint, cfg in zip(paths, checkpoints, configs, strict=True):
        _check_model(path, cfg.get('model') or {}, paths[0], configs[0].get('model') or {})
        _check_base(path, checkpoint['state_dict'], paths[0], checkpoints[0]['state_dict'])
        _check_classes(path, checkpoint['meta'], paths[0], checkpoints[0]['meta'])
    cfg = configs[0]
    _forget_run(cfg)
    cfg.ensemble = dict(seeds=list(range(len(paths))))  # those of a further training
    settings.place(cfg)
    model = building.build_model(cfg, 'meta')
    bases = {
        prefix: Base.from_tensor(checkpoints[0]['state_dict'][prefix + KEY]).without_path()
        for prefix, _ in frozen_bases(model)
    }
    state = _join(paths, [checkpoint['state_dict'] for checkpoint in checkpoints])
    state.update({prefix + KEY: base.to_tensor() for prefix, base in bases.items()})
    counts = params.report(model)
    first = checkpoints[0]['meta']
    meta = {key: first[key] for key in ('dataset_meta', 'licence') if first.get(key) is not None}
    meta.update(
        format=deltas.FORMAT,
        cfg=cfg.pretty_text,
        method=method_of(cfg.model.backbone, model.backbone),
        counts={key: counts[key] for key in ('trainable', 'total', 'percent')},
        bases={prefix: dataclasses.asdict(base) for prefix, base in bases.items()},
        members=[_told(checkpoint['meta']) for checkpoint in checkpoints],
    )
    return dict(state_dict=state, meta=meta)


def _forget_run(cfg: Config) -> None:
    """Leave out of a member's config what is of its run, or not for an ensemble's training."""
    cfg.pop('ensemble', None)
    stored_config.forget_run(cfg)
    if cfg.get('optim_wrapper'):
        cfg.optim_wrapper.clip_grad = None
    for key, node in settings.mixing(cfg):
        del node[key.rpartition('.')[2]]
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [
            hook for hook in cfg.custom_hooks if hook.get('type') != settings.START_HOOK]


def _told(meta: dict[str, Any]) -> dict[str, Any]:
    keys = ('seed', 'iter', 'epoch', 'metric', 'experiment_name', 'run_id', 'versions')
    return {key: meta[key] for key in keys if meta.get(key) is not None}


def _check_model(path: str, model: dict, first_path: str, first: dict) -> None:
    """Members are of one model; where its pretrained weights lie is no matter."""
    backbone = model.get('backbone') or {}
    if not backbone.get('prompt'):
        raise UserError(f'{path} has no prompt: only sets of prompts make an ensemble')
    if settings.is_ensemble(model):
        raise UserError(f'{path} is an ensemble already; name the deltas of its members')
    key = stored_config.difference(_comparable(model), _comparable(first), 'model')
    if key:
        raise UserError(
            f'{path} is not of the same model and method as {first_path}: they differ in {key}'
        )


def _comparable(model: dict) -> dict:
    """The settings that must be the same: not the places of files."""
    backbone = {key: value for key, value in model['backbone'].items() if key != 'init_cfg'}
    return {**model, 'backbone': backbone}


def _check_base(path: str, state: dict, first_path: str, first: dict) -> None:
    """Members stand on the same frozen tensors."""
    records = [
        {name: Base.from_tensor(tensor) for name, tensor in each.items() if name.endswith(KEY)}
        for each in (state, first)
    ]
    if not records[0]:
        raise UserError(
            f'{path} does not say which pretrained weights it builds on; make a delta of it with '
            'tools/delta.py extract'
        )
    found, wanted = ({name: base.sha256 for name, base in each.items()} for each in records)
    if found != wanted:
        raise UserError(
            f'{path} builds on other pretrained weights than {first_path}: the SHA-256 of the '
            f'frozen tensors is {", ".join(found.values())}, not {", ".join(wanted.values())}'
        )


def _check_classes(path: str, meta: dict, first_path: str, first: dict) -> None:
    """Members predict the same classes in the same order, as far as the files name them."""
    found, wanted = (
        list((each.get('dataset_meta') or {}).get('classes') or []) for each in (meta, first)
    )
    if found and wanted and found != wanted:
        own, first_own = next(p for p in itertools.zip_longest(found, wanted) if p[0] != p[1])
        raise UserError(
            f'{path} has other classes than {first_path}, or in another order: {own!r} in place of '
            f'{first_own!r}; only models of the same classes make an ensemble'
        )


def _join(paths: Sequence[str], states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Put the tensors of each member where the ensemble has them."""
    joined: dict[str, Tensor] = {}
    for i, (path, state) in enumerate(zip(paths, states, strict=True)):
        for name, tensor in state.items():
            if name.endswith(KEY):
                continue
            own = _name(name, i)
            if own in joined and not torch.equal(joined[own], tensor):
                raise UserError(
                    f'{path}: {name} differs from that of {paths[0]}, but the members of an '
                    'ensemble share it; only prompts and heads may be tuned'
                )
            joined[own] = tensor
    return joined


def _name(name: str, member: int) -> str:
    """The name that a tensor of a single model has in an ensemble."""
    parts = name.split('.')
    if parts[:2] == ['backbone', 'prompt']:
        place = 2
    elif parts[0] == tasks.AUXILIARY and parts[1].isdigit():
        place = 2
    elif parts[0] in settings.parts():
        place = 1
    else:
        return name
    return '.'.join([*parts[:place], 'members', str(member), *parts[place:]])
