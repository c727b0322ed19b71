"""Metrics of several tasks together: each task's own, and what training together gains."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS as MMENGINE_METRICS

from vpt_dense.argument_checks import check_number
from vpt_dense.errors import UserError, suggest
from vpt_dense.evaluation.map_metrics import _MeanOfImages
from vpt_dense.registry import METRICS

#: What a task is judged by, the first of these that its metric has -> whether less is better.
HEADLINES = {'mIoU': False, 'ods_f': False, 'rmse': True, 'mean_angle': True, 'mae': True}
#: What heads and metrics of one task call its map, behind ``gt_`` and ``pred_``.
_NAMES = ('sem_seg', 'depth_map', 'normal_map', 'edge_map', 'distance_map')


def delta_m(
    together: Mapping[str, float], alone: Mapping[str, float], less: Mapping[str, bool]
) -> float:
    """What tasks gain from training together, in percent.

    ::

        delta_m = 100 / T sum_t (-1)^(l_t) (M_t - S_t) / S_t

    with M_t the score of task t in the model of all tasks, S_t in that of its own, and l_t = 1
    where less is better (K.-K. Maninis et al., CVPR 2019, https://arxiv.org/abs/1904.08918; the
    survey of S. Vandenhende et al., https://arxiv.org/abs/2004.13379, section 4.1).

    Args:
        together: Task -> M_t.
        alone: Task -> S_t.
        less: Task -> whether less is better.

    Raises:
        UserError: If they are not of the same tasks, or a score alone is 0.
    """
    if set(together) != set(alone) or not together:
        raise UserError(f'delta_m: scores together are of {sorted(together)}, alone of '
                        f'{sorted(alone)}; the same tasks are needed')
    if any(value == 0 for value in alone.values()):
        raise UserError('delta_m: a task has a score of 0 alone, of which nothing is a share')
    gains = [(together[name] - alone[name]) / alone[name] * (-1 if less[name] else 1)
             for name in together]  # fmt: skip
    return 100 * sum(gains) / len(gains)


@METRICS.register_module()
class MultiTaskMetric(BaseMetric):
    """Evaluates each task by a metric of its own: ``TASK/NAME``; and :func:`delta_m`.

    Of a task the samples hold ``gt_TASK_map`` and ``pred_TASK_map``, which its metric sees under
    the names that it looks for.

    Args:
        tasks: Task -> config of its metric. ``vpt_dense.IoUMetric`` takes the classes from the
            data set's ``task_classes``, or its ``classes`` where there are none.
        alone: Task -> its score in a model of its own, for ``delta_m``; None: no ``delta_m``. The
            score is the first that the metric has of mIoU, ods_f, rmse, mean_angle, mae.
        collect_device: As in :class:`mmengine.evaluator.BaseMetric`.
        prefix: As there.

    Raises:
        UserError: If a score is of no task, or a task has none.
    """

    default_prefix = ''

    def __init__(
        self, tasks: Mapping[str, dict], alone: Mapping[str, float] | None = None,
        collect_device: str = 'cpu', prefix: str | None = None,
    ) -> None:
        if not tasks:
            raise UserError('MultiTaskMetric.tasks: name a metric for each task')
        self.metrics = {
            name: MMENGINE_METRICS.build(dict(collect_device=collect_device, **config))
            for name, config in tasks.items()}
        for name, value in (alone or {}).items():
            if name not in tasks:
                raise UserError(f'MultiTaskMetric.alone: there is no task {name!r}'
                                f'{suggest(name, tasks)}')
            check_number(value, f'MultiTaskMetric.alone.{name}')
        lacking = [name for name in tasks if alone and name not in alone]
        if lacking:
            raise UserError(f'MultiTaskMetric.alone: the score of {lacking[0]} is not given')
        self.alone = dict(alone or {})
        super().__init__(collect_device, prefix)

    @property
    def dataset_meta(self) -> dict | None:
        """What is known of the data set."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict | None) -> None:
        self._dataset_meta = meta
        of_tasks = (meta or {}).get('task_classes') or {}
        for name, metric in self.metrics.items():
            classes = of_tasks.get(name, (meta or {}).get('classes'))
            metric.dataset_meta = {**(meta or {}), 'classes': classes} if classes else meta

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Hand the maps of each task to its metric."""
        for name, metric in self.metrics.items():
            metric.process(data_batch, [_seen(sample, name) for sample in data_samples])

    def evaluate(self, size: int) -> dict[str, float]:
        """The metrics of all tasks; see :meth:`mmengine.evaluator.BaseMetric.evaluate`.

        Raises:
            UserError: If ``alone`` has a score of a task whose metric has none of those.
        """
        found, scores = {}, {}
        for name, metric in self.metrics.items():
            own = metric.evaluate(size)
            found |= {f'{name}/{key}': value for key, value in own.items()}
            scores[name] = next((key for key in HEADLINES if key in own), None)
        if self.alone:
            bare = [name for name, key in scores.items() if key is None]
            if bare:
                raise UserError(f'MultiTaskMetric.alone: the metric of {bare[0]} has none of '
                                f'{", ".join(HEADLINES)}')
            found['delta_m'] = delta_m(
                {name: found[f'{name}/{key}'] for name, key in scores.items()}, self.alone,
                {name: HEADLINES[key] for name, key in scores.items()})
        return {f'{self.prefix}/{key}' if self.prefix else key: value
                for key, value in found.items()}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Not used: each task's metric computes its own."""
        raise NotImplementedError


def _seen(sample: dict, name: str) -> dict:
    """A sample as the metric of a task looks at it."""
    view = {key: value for key, value in sample.items()
            if not key.startswith(('gt_', 'pred_'))}  # fmt: skip
    for side in ('gt', 'pred'):
        found = sample.get(f'{side}_{name}_map')
        if found is None:
            raise UserError(f'{sample.get("img_path")}: there is no {side}_{name}_map; '
                            'MultiTaskMetric.tasks must be tasks of the model and of the data')
        view |= {f'{side}_{key}': found for key in _NAMES}
    return view


@METRICS.register_module()
class EdgeMetric(BaseMetric):
    """F of edges at the threshold that is best for the whole data set: ``ods_f``, in percent.

    Of each of ``thresholds`` levels between 0 and 1, precision is the share of found edge pixels
    within ``tolerance`` of a true one, recall the share of true ones within ``tolerance`` of a
    found one; pixels are added up over all images, and the best F = 2 P R / (P + R) is told with
    its ``threshold``, ``precision`` and ``recall``.

    The benchmark of BSDS500 (P. Arbelaez et al., PAMI 2011) thins what is found and matches pixels
    one to one; here neither is done, so figures are higher than those of ``odsF`` in publications,
    and are to be compared with each other alone.

    Args:
        tolerance: As a share of the image's diagonal; 0.0075, as there.
        thresholds: How many, at i / (n + 1).
        collect_device: As in :class:`mmengine.evaluator.BaseMetric`.
        prefix: As there.
    """

    default_prefix = ''

    def __init__(
        self, tolerance: float = 0.0075, thresholds: int = 99, collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        self.tolerance = check_number(tolerance, 'EdgeMetric.tolerance', positive=True)
        self.levels = np.arange(1, thresholds + 1) / (thresholds + 1)
        super().__init__(collect_device, prefix)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch, at each threshold."""
        for sample in data_samples:
            truth, found = (sample[key]['data'].reshape(sample[key]['data'].shape[-2:]).cpu()
                            .numpy() for key in ('gt_edge_map', 'pred_edge_map'))
            known, edges = truth != 255, truth == 1
            found = np.where(known, found, 0).astype(np.float32)
            radius = int(self.tolerance * np.hypot(*truth.shape))
            places = np.arange(-radius, radius + 1)
            disk = (places[:, None]**2 + places**2 <= radius**2).astype(np.uint8)
            near = cv2.dilate(edges.astype(np.uint8), disk) > 0
            reached = cv2.dilate(found, disk)
            counts = [
                _at_least(found[known & near], self.levels), _at_least(found[known], self.levels),
                _at_least(reached[edges], self.levels), np.full(len(self.levels), edges.sum())]
            self.results.append(np.stack(counts))

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """F at the best threshold.

        Raises:
            UserError: If no image has an edge.
        """
        right, told, reached, there = np.sum(results, axis=0).astype(np.float64)
        if not there[0]:
            raise UserError('EdgeMetric: no image has an edge')
        precision = np.divide(right, told, out=np.zeros_like(right), where=told > 0)
        recall = reached / there
        both = precision + recall
        scores = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
        best = int(scores.argmax())
        return dict(ods_f=100 * scores[best], threshold=float(self.levels[best]),
                    precision=100 * precision[best], recall=100 * recall[best])


def _at_least(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """How many values reach each level."""
    return len(values) - np.searchsorted(np.sort(values), levels.astype(np.float32))


@METRICS.register_module()
class MapErrorMetric(_MeanOfImages):
    """Errors of a map of one channel (distances): ``rmse`` and ``mae`` of each image, then means.

    Pixels whose truth is below 0 are left out.

    Args:
        collect_device: As in :class:`mmengine.evaluator.BaseMetric`.
        prefix: As there.
    """

    default_prefix = ''

    def score(self, sample: dict) -> dict[str, float] | None:
        """See the class; in the unit of the map."""
        truth, found = (sample[key]['data'].double()
                        for key in ('gt_distance_map', 'pred_distance_map'))
        errors = (found - truth.to(found))[truth.to(found) >= 0]
        if not len(errors):
            return None
        if not errors.isfinite().all():
            raise UserError(f'{sample.get("img_path")}: a predicted distance is not finite')
        return dict(rmse=errors.square().mean().sqrt().item(), mae=torch.mean(errors.abs()).item())
