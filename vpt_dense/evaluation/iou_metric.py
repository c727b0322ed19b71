"""Mean intersection over union, with results by class that do not flood the console."""

from collections.abc import Sequence

import numpy as np
from mmengine.logging import MMLogger
from mmseg.evaluation import IoUMetric as _IoUMetric

from vpt_dense.params import text_table
from vpt_dense.registry import METRICS

MAX_TABLE_CLASSES = 20


@METRICS.register_module()
class IoUMetric(_IoUMetric):
    """mmseg's ``IoUMetric``: same arguments, same numbers.

    It differs in what becomes of the results by class: the table is printed only for 20 classes or
    fewer, and all of them are kept, for :class:`vpt_dense.hooks.ReportHook` to write to JSON.

    Attributes:
        per_class: Of the last evaluation, for each class {'class': its name, 'IoU': percent, ...};
            None before.
    """

    per_class: list[dict[str, str | float]] | None = None

    # mmseg's metric names have no prefix either; None instead of '' would warn about it.
    default_prefix = ''

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the metrics of a data set.

        Args:
            results: For each image the areas (intersection, union, prediction, label), each a
                float tensor (num_classes,) in pixels.

        Returns:
            The metrics in percent, rounded to two decimals: ``aAcc``, ``mIoU``, ``mAcc``, ...

        Raises:
            ValueError: If there are no results.
        """
        if self.format_only:
            return super().compute_metrics(results)
        if not results:
            raise ValueError('IoUMetric has no results: the evaluated data set holds no image')
        areas = [sum(column) for column in zip(*results, strict=True)]
        values = self.total_area_to_metrics(*areas, self.metrics, self.nan_to_num, self.beta)
        metrics = {
            name if name == 'aAcc' else f'm{name}': np.round(np.nanmean(value) * 100, 2)
            for name, value in values.items()
        }
        del values['aAcc']
        self._keep_classes(self.dataset_meta['classes'], values)
        return metrics

    def _keep_classes(self, classes: Sequence[str], values: dict[str, np.ndarray]) -> None:
        # In float64, whose shortest text has the two decimals.
        percents = {
            name: np.round(value.astype(np.float64) * 100, 2) for name, value in values.items()
        }
        prefix = f'{self.prefix}/' if self.prefix else ''
        self.per_class = [
            {'class': name}
            | {prefix + key: float(value[index]) for key, value in percents.items()}
            for index, name in enumerate(classes)
        ]
        if len(classes) <= MAX_TABLE_CLASSES:
            table = text_table(
                ('class', *percents),
                [
                    (name, *(f'{value[index]:.2f}' for value in percents.values()))
                    for index, name in enumerate(classes)
                ],
            )
            MMLogger.get_current_instance().info('Results by class in percent:\n%s', table)
