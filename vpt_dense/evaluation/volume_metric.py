"""Dice and Hausdorff distance of whole volumes, by MONAI."""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from vpt_dense.argument_checks import check_flag, is_list, is_number
from vpt_dense.datasets import medical
from vpt_dense.errors import UserError
from vpt_dense.logging import tell_classes
from vpt_dense.registry import METRICS


class _Slice(NamedTuple):
    """A slice of a case; maps are compressed, (H, W) uint8."""

    case: str
    index: int
    shape: tuple[int, int]
    prediction: bytes
    label: bytes


@METRICS.register_module()
class VolumeMetric(BaseMetric):
    """Dice and the 95th percentile of the Hausdorff distance, in mm, case by case.

    The slices of a NIfTI volume are one case, in three dimensions; any other image is a case of
    its own, in two. A figure of a class is the mean over the cases, ``mDice`` and ``mHD95`` are
    means over the classes.

    - Dice = 2 P L / (P + L), in percent, of the pixels P of the prediction and L of the label. A
      case that has the class in neither is left out; in one of them: 0.
    - HD95: of all distances from the surface of the one to the nearest point of the other's, the
      95th percentile, the larger of both directions, as MONAI computes it. It is not defined where
      one is empty: ``HD95_undefined`` counts such pairs of a case and a class, which are left out.

    Ignored pixels belong to no class. Spacing is that of the file: of NIfTI and DICOM.

    Args:
        ignore_index: The label that is left out; ``dataset.ignore_index`` sets it.
        with_background: Whether class 0 is one of the classes.
        spacing: (height, width) of a pixel in mm, where files do not say it. None: lengths of such
            files are in pixels.
        hd95: Whether distances are computed, which takes longer than Dice.
        **kwargs: See ``mmengine.evaluator.BaseMetric``.

    Attributes:
        per_class: Of the last evaluation, for each class {'class', 'Dice', 'HD95'}.

    Raises:
        UserError: MONAI is not installed.
        ValueError: An argument is none; or a volume lacks slices of those between its first and
            its last.
    """

    default_prefix = ''
    per_class: list[dict[str, Any]] | None = None

    def __init__(
        self, ignore_index: int = 255, with_background: bool = False,
        spacing: Sequence[float] | None = None, hd95: bool = True, **kwargs,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        self.first = 0 if check_flag(with_background, 'VolumeMetric.with_background') else 1
        self.hd95 = check_flag(hd95, 'VolumeMetric.hd95')
        if spacing is not None and not (
                is_list(spacing) and len(spacing) == 2
                and all(is_number(length) and length > 0 for length in spacing)):
            raise ValueError(
                'VolumeMetric: spacing must be (height, width) of a pixel in mm, found '
                f'{spacing!r}')
        self.spacing = None if spacing is None else tuple(spacing)
        try:
            from monai import metrics
        except ImportError as error:
            raise UserError("vpt_dense.VolumeMetric needs MONAI: pip install "
                            "'vpt-dense[medical]'") from error
        self.monai = metrics

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the labels of a batch, compressed.

        Args:
            data_batch: Not used.
            data_samples: For each image ``pred_sem_seg`` and ``gt_sem_seg``: {'data': (1, H, W) or
                (H, W) integers}, and ``img_path``.
        """
        for sample in data_samples:
            prediction, label = (
                sample[key]['data'].reshape(sample[key]['data'].shape[-2:]).cpu().numpy()
                for key in ('pred_sem_seg', 'gt_sem_seg'))
            case, index = medical.split(sample['img_path'])
            self.results.append(_Slice(case, -1 if index is None else index, label.shape, *(
                zlib.compress(each.astype(np.uint8).tobytes(), 1) for each in (prediction, label))))

    def compute_metrics(self, results: list[_Slice]) -> dict[str, float]:
        """Put the slices together and measure every case.

        Args:
            results: Of all processes, in any order.

        Returns:
            ``mDice`` in percent, and unless ``hd95`` is False ``mHD95`` in mm (in pixels, where no
            spacing is known) and ``HD95_undefined``.
        """
        classes = list(self.dataset_meta['classes'])[self.first:]
        cases: dict[str, dict[int, _Slice]] = {}
        for values in results:
            each = _Slice(*values)  # mmengine has made a tuple of it
            cases.setdefault(each.case, {})[each.index] = each
        dice, distances, undefined = [], [], 0
        for case, slices in cases.items():
            prediction, label = self._case(case, slices)
            kept = label != self.ignore_index
            numbers = range(self.first, self.first + len(classes))
            both = [
                torch.from_numpy(np.stack([(array == number) & kept for number in numbers])[None])
                for array in (prediction, label)]
            there = np.stack([each[0].flatten(1).any(1).numpy() for each in both])
            found = self.monai.compute_dice(
                *(each.float() for each in both), ignore_empty=False)[0].numpy()
            dice.append(np.where(there.any(0), found * 100, np.nan))
            if self.hd95:
                distances.append(self._distances(case, slices, both, there))
                undefined += int((there[0] != there[1]).sum())
        columns = {'Dice': _means(dice)}
        if self.hd95:
            columns['HD95'] = _means(distances)
        self.per_class = [
            {'class': name, **{key: round(float(column[i]), 2) for key, column in columns.items()}}
            for i, name in enumerate(classes)]
        tell_classes(('class', *columns), [
            (row['class'], *(f'{row[key]:.2f}' for key in columns)) for row in self.per_class])
        metrics = {f'm{key}': round(_mean(column), 2) for key, column in columns.items()}
        if self.hd95:
            metrics['HD95_undefined'] = undefined
        return metrics

    def _case(self, case: str, slices: dict[int, _Slice]) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and label of a case: (slices, H, W), or (H, W)."""
        order = sorted(slices)
        if order[-1] - order[0] + 1 != len(order):
            lacking = next(i for i in range(order[0], order[-1]) if i not in slices)
            raise ValueError(
                f'VolumeMetric: {case} is evaluated without its slice {lacking}; a volume is one '
                'case, take all slices of it')
        prediction, label = (
            np.stack([np.frombuffer(zlib.decompress(getattr(slices[i], key)), np.uint8)
                      .reshape(slices[i].shape) for i in order])
            for key in ('prediction', 'label'))
        return (prediction[0], label[0]) if order == [-1] else (prediction, label)

    def _distances(
        self, case: str, slices: dict[int, _Slice], both: list[torch.Tensor], there: np.ndarray
    ) -> np.ndarray:
        """HD95 of every class, nan where one of the two is empty."""
        index = next(iter(slices))
        spacing = medical.spacing(case, index)
        if spacing is None:
            spacing = self.spacing or (1.0, 1.0)
        found = np.full(there.shape[1], np.nan)
        chosen = np.flatnonzero(there.all(0))
        if len(chosen):
            found[chosen] = self.monai.compute_hausdorff_distance(
                *(each[:, chosen].float() for each in both), include_background=True,
                percentile=95, spacing=list(spacing))[0].numpy()
        return found


def _means(rows: list[np.ndarray]) -> np.ndarray:
    """The mean over cases, of those that have a figure; nan where none has."""
    return np.array([_mean(column) for column in np.stack(rows).T])


def _mean(values: np.ndarray) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float('nan')
