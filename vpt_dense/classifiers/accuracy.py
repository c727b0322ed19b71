"""Accuracy, in total and by class."""

from typing import Any

import numpy as np
import torch
from mmpretrain.evaluation import Accuracy as _Accuracy
from mmpretrain.evaluation import SingleLabelMetric

from vpt_dense.logging import tell_classes
from vpt_dense.registry import METRICS


@METRICS.register_module()
class Accuracy(_Accuracy):
    """mmpretrain's ``Accuracy``: same arguments and numbers, with results by class beside.

    A table is printed for 20 classes or fewer, and all of them are kept, for
    :class:`vpt_dense.hooks.ReportHook` to write to JSON. They are those of mmpretrain's
    ``SingleLabelMetric`` at the first of the thresholds; of a class without an image, nan.

    Attributes:
        per_class: Of the last evaluation, in the main process, for each class {'class': its name,
            'accuracy': the percentage of its images that were told (its recall), 'precision',
            'f1-score', 'support': its images}; None before.
    """

    per_class: list[dict[str, Any]] | None = None

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the metrics, and the results by class.

        Args:
            results: Of each image ``gt_label`` and ``pred_score`` (or ``pred_label``).

        Returns:
            Of mmpretrain: ``top1``, ... in percent.
        """
        metrics = super().compute_metrics(results)
        classes = self.dataset_meta.get('classes') if self.dataset_meta else None
        if not classes:
            return metrics
        target = torch.cat([result['gt_label'] for result in results])
        if 'pred_score' in results[0]:
            scores = torch.stack([result['pred_score'] for result in results])
            if len(classes) != scores.shape[1]:
                return metrics
            found, *_ = SingleLabelMetric.calculate(
                scores, target, thrs=self.thrs[:1], average=None)
        else:
            labels = torch.cat([result['pred_label'] for result in results])
            found = SingleLabelMetric.calculate(
                labels, target, average=None, num_classes=len(classes))
        precision, recall, f1_score, support = (values.double().numpy() for values in found)
        for values in (precision, recall, f1_score):
            values[support == 0] = np.nan
        columns = {'accuracy': recall, 'precision': precision, 'f1-score': f1_score}
        self.per_class = [
            {'class': str(name)}
            | {key: round(float(values[label]), 2) for key, values in columns.items()}
            | {'support': int(support[label])}
            for label, name in enumerate(classes)
        ]
        tell_classes(
            tuple(self.per_class[0]),
            [tuple(f'{value:.2f}' if isinstance(value, float) else str(value)
                   for value in row.values()) for row in self.per_class],
        )  # fmt: skip
        return metrics
