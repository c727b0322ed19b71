"""One metric over several test sets."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from vpt_dense import tables, tasks
from vpt_dense.argument_checks import is_number
from vpt_dense.registry import METRICS


@METRICS.register_module()
class SetsMetric(BaseMetric):
    """Evaluates each of several test sets with a metric of its own; ``test_sets`` makes it.

    The results are ``SET/NAME`` of every set, and under ``NAME`` the mean over the sets, each of
    which counts the same however many images it has.

    Args:
        metric: Config of the metric, which is built once for each set.
        sets: The names of the sets; ``test_set`` of a sample says which it is of.
        **kwargs: As in ``mmengine.evaluator.BaseMetric``.
    """

    default_prefix = ''

    def __init__(self, metric: dict, sets: Sequence[str], **kwargs) -> None:
        super().__init__(**kwargs)
        self.metrics = {name: METRICS.build(copy.deepcopy(metric)) for name in sets}
        self.counts = dict.fromkeys(sets, 0)

    @property
    def ignore_index(self) -> int:
        """The label that the metrics leave out."""
        return getattr(next(iter(self.metrics.values())), 'ignore_index', 255)

    @property
    def dataset_meta(self) -> dict | None:
        """What is known of the data."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        self._dataset_meta = meta
        for metric in self.metrics.values():
            metric.dataset_meta = meta

    @property
    def image_name(self) -> Callable:
        """See :class:`vpt_dense.evaluation.iou_metric.IoUMetric`."""
        return self._image_name

    @image_name.setter
    def image_name(self, name_of: Callable) -> None:
        self._image_name = name_of
        for metric in self.metrics.values():
            if hasattr(metric, 'image_name'):
                metric.image_name = name_of

    @property
    def per_class(self) -> list[dict[str, Any]] | None:
        """Of the last evaluation, the results by class: of every set, and their mean."""
        found = {name: getattr(metric, 'per_class', None) for name, metric in self.metrics.items()}
        if not all(found.values()):
            return None
        rows = []
        for parts in zip(*found.values(), strict=True):
            row: dict[str, Any] = {'class': parts[0]['class']}
            for key in [key for key in parts[0] if key != 'class']:
                row[key] = _mean([part[key] for part in parts])
                row.update({f'{name}/{key}': part[key] for name, part in
                            zip(found, parts, strict=True)})
            rows.append(row)
        return rows

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Give each sample to the metric of its set.

        Args:
            data_batch: Of the loader: lists or tensors of the batch's images.
            data_samples: Of each image ``test_set`` and what the metric needs.
        """
        places: dict[str, list[int]] = {}
        for i, sample in enumerate(data_samples):
            places.setdefault(sample['test_set'], []).append(i)
        for name, own in places.items():
            batch = data_batch
            if len(places) > 1 and isinstance(data_batch, dict):
                batch = {key: [values[i] for i in own] for key, values in data_batch.items()}
            self.metrics[name].process(batch, [data_samples[i] for i in own])
            self.counts[name] += len(own)

    def evaluate(self, size: int) -> dict[str, Any]:
        """Evaluate every set, log a table, and start anew.

        Args:
            size: Images of all sets together.

        Raises:
            ValueError: If another number of images was processed: a sampler gave some twice.
        """
        counts = torch.tensor(list(self.counts.values()))
        all_reduce(counts)
        self.counts = dict.fromkeys(self.counts, 0)
        if int(counts.sum()) != size:
            raise ValueError(
                f'SetsMetric: {int(counts.sum())} images were processed and the test sets have '
                f'{size}; set test_dataloader.sampler.round_up=False')
        found, logger = {}, MMLogger.get_current_instance()
        for (name, metric), number in zip(self.metrics.items(), counts.tolist(), strict=True):
            if is_main_process():
                logger.info('test set %s, %d images:', name, number)
            found[name] = metric.evaluate(number)
        keys = [key for key, value in next(iter(found.values())).items() if is_number(
            value, finite=False) and all(key in each for each in found.values())]
        means = {key: _mean([each[key] for each in found.values()]) for key in keys}
        if is_main_process() and keys:
            rows = [(name, *(tasks.told(key, each[key]) for key in keys))
                    for name, each in found.items()]
            rows.append(('mean', *(tasks.told(key, value) for key, value in means.items())))
            logger.info('Results by test set:\n%s', tables.text(('test set', *keys), rows))
        return {**{f'{name}/{key}': value for name, each in found.items()
                   for key, value in each.items()}, **means}

    def compute_metrics(self, results: list) -> dict:
        """Not used: :meth:`evaluate` asks the metrics of the sets."""
        raise NotImplementedError


def _mean(values: Sequence[float]) -> float:
    """Two decimals, as the metrics have them; nan if a set has no value."""
    return float(np.round(np.mean([float(value) for value in values]), 2))
