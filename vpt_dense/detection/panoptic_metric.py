"""Panoptic quality, counted image by image as COCO does it, with NumPy alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from vpt_dense.datasets import panoptic
from vpt_dense.errors import UserError
from vpt_dense.logging import tell_classes
from vpt_dense.registry import METRICS
from vpt_dense.segments import OFFSET

#: Figures of a class, and their ends where a mean is of all classes, of things or of stuff.
_FIGURES, _GROUPS = ('PQ', 'SQ', 'RQ'), ('', '_th', '_st')


@METRICS.register_module()
class PanopticMetric(BaseMetric):
    """Panoptic quality (Kirillov et al., CVPR 2019, https://arxiv.org/abs/1801.00868), in percent.

    Of a class PQ = sum of IoU / (TP + FP / 2 + FN / 2) = SQ RQ: SQ is the mean IoU of what was
    found, RQ = TP / (TP + FP / 2 + FN / 2). A pair of segments of one class matches above an IoU of
    0.5, pixels of no segment (void) left out of it. A segment that was found and has no match is
    no FP if more than half of it lies in void or in crowds of its class; crowds are no FN. The
    figures are the means over classes that occur in the truth or the prediction. mmdet's metric
    gives the same figures, and needs a package that is on no index.

    Args:
        ann_file: The JSON that predictions are compared with. In a config it may be left out, and
            ``seg_prefix`` too: they are those of the split.
        seg_prefix: The folder of its PNGs.
        collect_device: See :class:`mmengine.evaluator.BaseMetric`.
        prefix: As there.

    Attributes:
        per_class: Of the last evaluation, for each class that occurs {'class': its name,
            'coco_panoptic/PQ': ..., SQ, RQ}; None before.

    Raises:
        UserError: If the JSON cannot be read, a PNG does not fit it, or it has nothing of the
            classes.
    """

    default_prefix = 'coco_panoptic'
    per_class: list[dict[str, str | float]] | None = None

    def __init__(
        self, ann_file: str | None = None, seg_prefix: str | None = None,
        collect_device: str = 'cpu', prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if ann_file is None or seg_prefix is None:
            raise UserError('PanopticMetric: no ann_file and seg_prefix, the JSON and the folder '
                            'of PNGs that predictions are compared with')
        self._found = panoptic.read(ann_file)
        self._found.raise_first()
        self.ann_file, self.seg_prefix = str(ann_file), str(seg_prefix)
        sizes = {each['id']: (each['width'], each['height']) for each in self._found.images}
        self._truth = {each['image_id']: (each, sizes[each['image_id']])
                       for each in self._found.annotations}

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count what matches in a batch.

        Args:
            data_batch: Not used.
            data_samples: With ``img_id`` and ``pred_panoptic_seg`` (1, H, W).
        """
        labels = self._found.label_of(self.dataset_meta['classes'])
        for sample in data_samples:
            if 'pred_panoptic_seg' not in sample:
                raise UserError('PanopticMetric: the model puts out no panoptic map; set '
                                'model.test_cfg.panoptic_on=True')
            if sample['img_id'] not in self._truth:
                raise UserError(f'{self.ann_file} has no image {sample["img_id"]}, which was '
                                'predicted: it is the JSON of other images')
            annotation, size = self._truth[sample['img_id']]
            ids = panoptic.read_segments(self.seg_prefix, annotation, size)
            found = sample['pred_panoptic_seg']['sem_seg'][0].cpu().numpy()
            self.results.append(count(
                ids, {each['id']: (labels.get(each['category_id']), bool(each['iscrowd']))
                      for each in annotation['segments_info']}, found, len(labels)))

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """The figures of a data set: PQ, SQ, RQ; PQ_th, ... of things, PQ_st, ... of stuff."""
        if not results:
            raise ValueError('PanopticMetric has no results: the evaluated data set holds no image')
        classes = list(self.dataset_meta['classes'])
        overlaps, hits, extra, missed = np.sum(results, axis=0).T
        if not (hits + missed).any():
            raise UserError(f'{self.ann_file} has no segment of the classes {", ".join(classes)}: '
                            'there is nothing to compare with')
        total = hits + (extra + missed) / 2
        occurs = total > 0
        recognised = hits / np.where(occurs, total, 1)
        precise = overlaps / np.where(hits > 0, hits, 1)
        figures = 100 * np.stack([recognised * precise, precise, recognised], axis=1)
        is_thing = np.isin(classes, list(self.dataset_meta['thing_classes']))
        found = {}
        for end, group in zip(_GROUPS, (occurs, occurs & is_thing, occurs & ~is_thing),
                              strict=True):
            if group.any():
                found.update(zip((name + end for name in _FIGURES),
                                 figures[group].mean(0).tolist(), strict=True))
        prefix = f'{self.prefix}/' if self.prefix else ''
        self.per_class = [
            {'class': name, **{prefix + key: value for key, value in zip(
                _FIGURES, row.tolist(), strict=True)}}
            for name, row, there in zip(classes, figures, occurs, strict=True) if there]
        tell_classes(('class', *_FIGURES), [
            (name, *(f'{value:.2f}' if there else '-' for value in row))
            for name, row, there in zip(classes, figures, occurs, strict=True)])
        return found


def count(
    truth: np.ndarray, segments: dict[int, tuple[int | None, bool]], found: np.ndarray,
    number: int,
) -> np.ndarray:
    """What matches in an image.

    Args:
        truth: Ids of segments, (H, W).
        segments: Id -> label (None: it does not count, as void), and whether it is a crowd.
        found: As mmdet has it, (H, W): label + 1000 x the number of a thing, of stuff 0; a label
            of ``number`` and above is nothing.
        number: Of classes.

    Returns:
        (number, 4) float64: of each class the sum of IoU, TP, FP, FN.

    Raises:
        UserError: If the maps differ in size.
    """
    if truth.shape != found.shape:
        raise UserError(
            f'a prediction has {found.shape[1]} x {found.shape[0]} pixels, the truth '
            f'{truth.shape[1]} x {truth.shape[0]}')
    ids, rows = np.unique(truth, return_inverse=True)
    keys, columns = np.unique(found, return_inverse=True)
    both = np.bincount(rows.ravel() * len(keys) + columns.ravel(), minlength=len(ids) * len(keys))
    both = both.reshape(len(ids), len(keys)).astype(np.float64)  # pixels of each pair
    wanted = [segments.get(int(i), (None, False)) for i in ids]
    labels = np.array([-1 if label is None else label for label, _ in wanted])
    crowd = np.array([is_crowd for _, is_crowd in wanted])
    kinds = keys % OFFSET
    kinds = np.where(kinds < number, kinds, -1)
    void = both[labels < 0].sum(0)
    union = both.sum(1)[:, None] + both.sum(0) - both - void
    counts = (labels >= 0) & ~crowd
    pairs = (labels[:, None] == kinds) & counts[:, None]
    overlap = np.where(pairs, both / np.where(pairs, union, 1), 0.0)
    matches = overlap > 0.5
    alike = labels[:, None] == kinds
    excused = void + (both * (alike & (crowd & (labels >= 0))[:, None])).sum(0)
    extra = (kinds >= 0) & ~matches.any(0) & (excused / both.sum(0) <= 0.5)
    missed = counts & ~matches.any(1)
    result = np.zeros((number, 4))
    np.add.at(result[:, 0], labels[counts], np.where(matches, overlap, 0.0).sum(1)[counts])
    np.add.at(result[:, 1], labels[counts], matches.any(1)[counts])
    np.add.at(result[:, 2], kinds[extra], 1)
    np.add.at(result[:, 3], labels[missed], 1)
    return result
