"""``test_sets``: one model, tested on several sets; a result for each and their mean.

    test_sets = dict(
        cityscapes=dict(name='cityscapes', data_root='data/cityscapes', split='val'),
        acdc=dict(name='acdc', data_root='data/acdc', split='val'))

Each says how it differs from ``test_dataloader.dataset``; one of another ``type`` takes its
pipeline and classes alone. ``test_dataloader`` becomes a ``ConcatDataset`` of them, and every
metric of ``test_evaluator`` a ``vpt_dense.SetsMetric``.
"""

import copy
from typing import Any

from mmengine.config import Config, ConfigDict

from vpt_dense.errors import UserError
from vpt_dense.tree import as_list, kind_of

#: What says of a sample which set it is of.
TAG = 'vpt_dense.InTestSet'
METRIC = 'vpt_dense.SetsMetric'

#: What data sets say of their own files; it may differ from set to set.
_OWN = ['label_map', 'reduce_zero_label', 'palette']


def place_data(cfg: Config) -> None:
    """Make the data of ``test_dataloader`` those of ``test_sets``, in place.

    Raises:
        UserError: If ``test_sets`` is no dict of dicts, has less than two sets, or there is no
            test to put them into.
    """
    given = cfg.get('test_sets')
    if given is None:
        return
    if not isinstance(given, dict) or not all(isinstance(each, dict) for each in given.values()):
        raise UserError(
            'test_sets: a dict was expected, of each set its name and a dict of what differs from '
            f'test_dataloader.dataset; found {given!r}')
    if len(given) < 2:
        raise UserError(f'test_sets needs two sets or more, found {list(given)}; one alone is '
                        'test_dataloader.dataset')
    bad = [name for name in given if '/' in name or '.' in name]
    if bad:
        raise UserError(f'test_sets.{bad[0]}: a name of a set has no / and no . in it')
    loader = cfg.get('test_dataloader')
    if not isinstance(loader, dict) or not cfg.get('test_evaluator'):
        raise UserError('test_sets: the config has no test_dataloader and test_evaluator for them')
    base = loader.get('dataset') or {}
    if base.get('datasets') and {kind_of(step) for part in base['datasets']
                                 for step in part.get('pipeline') or ()} & {kind_of_tag()}:
        base = _untagged(base['datasets'][0])  # of a config that a run has written
    elif base.get('dataset') or base.get('datasets'):
        raise UserError(
            f'test_sets: test_dataloader.dataset is a {kind_of(base)}; it must be one data set, '
            'from which the sets say how they differ')
    sampler = dict(loader.get('sampler') or {}, round_up=False)  # no image twice
    parts = [_merged(base, each) for each in given.values()]
    cfg.test_dataloader = ConfigDict(loader, sampler=sampler, dataset=dict(
        type='ConcatDataset', datasets=parts, ignore_keys=list(_OWN)))


def place_metrics(cfg: Config) -> None:
    """Have samples say of which set they are, and metrics tell sets apart, in place.

    Raises:
        UserError: If a metric writes predictions itself.
    """
    given = cfg.pop('test_sets', None)
    if given is None:
        return
    for name, part in zip(given, cfg.test_dataloader.dataset.datasets, strict=True):
        steps = [step for step in part.get('pipeline') or () if kind_of(step) != kind_of_tag()]
        part['pipeline'] = [*steps, ConfigDict(type=TAG, name=name)]
    metrics = []
    for metric in as_list(cfg.test_evaluator):
        metric = metric['metric'] if metric.get('type') == METRIC else metric
        for key in ('output_dir', 'out_file_path'):
            if metric.get(key):
                raise UserError(
                    f'test_evaluator.{key}: with test_sets predictions are written by --out')
        metrics.append(ConfigDict(type=METRIC, metric=metric, sets=list(given)))
    cfg.test_evaluator = metrics


def kind_of_tag() -> str:
    """The name of the transform that says which set a sample is of."""
    return kind_of(dict(type=TAG))


def keep_tag(before: list[dict], after: list[dict]) -> list[dict]:
    """A pipeline in place of another one, with the name of the set that the other one says."""
    tags = [step for step in before if kind_of(step) == kind_of_tag()]
    return [*(step for step in after if kind_of(step) != kind_of_tag()), *tags]


def _untagged(dataset: dict) -> ConfigDict:
    steps = [step for step in dataset.get('pipeline') or () if kind_of(step) != kind_of_tag()]
    return ConfigDict(dataset, pipeline=steps)


def _merged(base: dict, own: dict) -> ConfigDict:
    """A set, as it differs from the data set of the test."""
    own = copy.deepcopy(dict(own))
    said = {key: own.pop(key) for key in ('classes', 'palette') if key in own}
    if said:
        own['metainfo'] = {**(own.get('metainfo') or {}), **said}
    if kind_of(own) not in (kind_of(base), 'None'):
        base = {key: base[key] for key in ('pipeline', 'metainfo', 'test_mode') if key in base}
    return _over(base, own)


def _over(base: dict, own: dict) -> ConfigDict:
    merged = ConfigDict(copy.deepcopy(dict(base)))
    for key, value in own.items():
        both: Any = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(merged[key], value) if both else value
    return merged
