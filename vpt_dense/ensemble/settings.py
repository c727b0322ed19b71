"""The config key ``ensemble``: puts its settings where model, loader and schedule need them."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from vpt_dense import tasks
from vpt_dense.argument_checks import check_count, is_int, is_list
from vpt_dense.errors import UserError
from vpt_dense.tree import as_list, heads

PROMPT, SAMPLER = 'vpt_dense.PromptEnsemble', 'vpt_dense.EnsembleSampler'
#: The hook that starts a single set of prompts from the training images.
START_HOOK = 'vpt_dense.PromptStartHook'


def check_seeds(seeds: Sequence[int], key: str) -> list[int]:
    """Return the seeds of an ensemble as a list.

    Raises:
        UserError: If they are no whole numbers of at least 0, none at all, or one is there twice.
    """
    if not is_list(seeds) or not seeds or not all(is_int(seed, 0) for seed in seeds):
        raise UserError(
            f'{key} must be a list of whole numbers, one for each member and at least one, '
            f'found {seeds!r}'
        )
    seeds = list(seeds)
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise UserError(f'{key} has {twice} twice: two members would be the same')
    return seeds


def place(cfg: Config) -> None:
    """Turn a config with ``ensemble = dict(seeds=[...])`` into that of an ensemble, in place.

    - The prompt, the heads and the neck become ensembles of those that are configured.
    - ``train_dataloader.batch_size`` is that of a member: the loader's becomes k times as large,
      and its sampler gives every member an order of its own.
    - ``auto_scale_lr.base_batch_size`` becomes k times as large too: the learning rate stays that
      of a member's batch.

    Nothing happens without ``ensemble``; a config that has been through this is checked again.

    Raises:
        UserError: If there is no prompt, the model's parts are not of the same members, or
            something would make one member depend on the others.
    """
    settings = cfg.pop('ensemble', None)
    model = cfg.get('model') or {}
    if settings is not None:
        if not isinstance(settings, dict) or set(settings) != {'seeds'}:
            raise UserError(f'ensemble must be dict(seeds=[0, 1, ...]), found {settings!r}')
        seeds = check_seeds(settings['seeds'], 'ensemble.seeds')
        wrap(model, seeds)
        _place_in_loader(cfg, seeds)
    _check_parts(model)
    if is_ensemble(model):
        _check_independence(cfg)


def parts() -> dict[str, tuple[str, str]]:
    """The other parts of a model that each member has one of.

    Returns:
        Key of the model -> type of the ensemble (empty: there is none), name of its argument.
    """
    return {
        'neck': ('vpt_dense.EnsembleNeck', 'neck'),
        **{head: (task.ensemble, 'head') for task in tasks.TASKS.values() for head in task.heads},
        tasks.AUXILIARY: ('vpt_dense.EnsembleDecodeHead', 'head'),
    }


def is_ensemble(model: dict) -> bool:
    """Whether the config of a model is one of an ensemble."""
    prompt = (model.get('backbone') or {}).get('prompt')
    return isinstance(prompt, dict) and prompt.get('type') == PROMPT


def mixing(cfg: Config) -> list[tuple[str, dict]]:
    """The settings that mix the images of a batch: the dotted key of each, and its dict."""
    model = cfg.get('model') or {}
    places = {
        'model.train_cfg.augments': model.get('train_cfg'),
        'model.data_preprocessor.batch_augments': model.get('data_preprocessor'),
        'data_preprocessor.batch_augments': cfg.get('data_preprocessor'),
    }
    return [
        (key, node) for key, node in places.items()
        if isinstance(node, dict) and node.get(key.rpartition('.')[2])
    ]


def wrap(model: dict, seeds: list[int]) -> None:
    """Put prompt, neck and heads of a model's config into ensembles, in place.

    Raises:
        UserError: If the model has no prompt, or is an ensemble already.
    """
    backbone = model.get('backbone') or {}
    if not backbone.get('prompt'):
        raise UserError(
            'ensemble: the config has no model.backbone.prompt; take one whose tuning has a prompt'
        )
    if is_ensemble(model):
        raise UserError('ensemble: the model is one already')
    if any(isinstance(head.get('text'), dict) for head in heads(model)):
        raise UserError(
            'ensemble: there is none of models that know classes by their names (configs/clip); '
            'train the members one by one and average what they predict')
    backbone['prompt'] = dict(type=PROMPT, seeds=seeds, prompt=backbone['prompt'])
    for key, (kind, argument) in parts().items():
        part = model.get(key)
        if not part:
            continue
        if not kind:
            raise UserError(f'ensemble: there is none of model.{key}')
        wrapped = [{'type': kind, 'seeds': seeds, argument: each} for each in as_list(part)]
        model[key] = wrapped if isinstance(part, (list, tuple)) else wrapped[0]


def _place_in_loader(cfg: Config, seeds: list[int]) -> None:
    loader = cfg.get('train_dataloader')
    if not loader:
        return
    if loader.get('batch_sampler') or not loader.get('sampler'):
        raise UserError(
            'ensemble: train_dataloader needs a sampler and a batch_size, no batch_sampler'
        )
    size = check_count(loader.get('batch_size', 1), 'train_dataloader.batch_size')
    scale = cfg.get('auto_scale_lr')
    if isinstance(scale, dict) and 'base_batch_size' in scale:
        base = check_count(scale['base_batch_size'], 'auto_scale_lr.base_batch_size')
        scale['base_batch_size'] = base * len(seeds)
    loader['sampler'] = dict(type=SAMPLER, sampler=loader['sampler'], seeds=seeds, batch_size=size)
    loader['batch_size'] = size * len(seeds)


def _check_parts(model: dict) -> None:
    """Prompt, neck and heads have the same members; a config that is written out may be changed."""
    seeds = model['backbone']['prompt'].get('seeds') if is_ensemble(model) else None
    for key, (kind, _) in parts().items():
        part = model.get(key)
        for each in as_list(part or None):
            several = isinstance(each, dict) and each.get('type') == kind
            found = each.get('seeds') if several else None
            if found != seeds:
                told = 'no ensemble' if found is None else f'one of the seeds {found}'
                wanted = 'no ensemble' if seeds is None else f'one of the seeds {seeds}'
                raise UserError(
                    f'model.{key} is {told}, but model.backbone.prompt is {wanted}; set '
                    'ensemble=dict(seeds=[...]) in a config without ensembles, it makes both'
                )


def _check_independence(cfg: Config) -> None:
    """Members must not meet: not in a norm of gradients, in a mixed image or in a batch."""
    clip = (cfg.get('optim_wrapper') or {}).get('clip_grad')
    if isinstance(clip, dict) and clip.get('type', 'norm') == 'norm':
        raise UserError(
            'optim_wrapper.clip_grad clips the norm over all members of an ensemble, so that one '
            "would slow down the others; take clip_grad=None or clip_grad=dict(type='value', ...)"
        )
    for key, _ in mixing(cfg):
        raise UserError(f'{key} mixes images of different members of an ensemble; leave it out')
    if any(hook.get('type') == START_HOOK for hook in cfg.get('custom_hooks') or []):
        raise UserError(
            f'custom_hooks: {START_HOOK} starts one set of prompts, not those of an ensemble; '
            'train the members one by one and join them with tools/ensemble.py'
        )
    loader = cfg.get('train_dataloader') or {}
    sampler = loader.get('sampler') or {}
    if not loader:
        return
    number = len(cfg.model.backbone.prompt.seeds)
    if sampler.get('type') != SAMPLER:
        raise UserError(
            f'train_dataloader.sampler must be of type {SAMPLER} for an ensemble, found '
            f'{sampler.get("type")}'
        )
    _check_sizes(loader, sampler, number)


def _check_sizes(loader: dict[str, Any], sampler: dict[str, Any], number: int) -> None:
    found, each = loader.get('batch_size'), sampler.get('batch_size')
    if len(sampler['seeds']) != number or found != number * each:
        raise UserError(
            f'train_dataloader: batch_size {found} is not that of {number} members with '
            f'sampler.batch_size {each} and {len(sampler["seeds"])} sampler.seeds; set '
            'train_dataloader.batch_size in the config that has `ensemble`'
        )
