"""Average precision as COCO has it, by pycocotools: in percent, unrounded."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from mmdet.evaluation import CocoMetric as _CocoMetric
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vpt_dense.datasets import coco
from vpt_dense.errors import UserError
from vpt_dense.logging import tell_classes
from vpt_dense.registry import METRICS

#: Places of the figures among those that pycocotools sums up.
_FIGURES = {'mAP': 0, 'mAP_50': 1, 'mAP_75': 2, 'mAP_s': 3, 'mAP_m': 4, 'mAP_l': 5}


@METRICS.register_module()
class CocoMetric(_CocoMetric):
    """The figures of pycocotools, in percent, with all digits: at most 100 predictions an image.

    mmdet's are 0 to 1 and rounded to three digits, with ``mAP_50`` and the others of up to 1,000
    predictions an image; it finds classes by the order of the JSON; where there is no prediction
    at all it gives no figure, and here that is 0. Of the sizes (``mAP_s``, ``_m``, ``_l``) those
    are left out that no annotation has.

    Args:
        ann_file: The JSON that predictions are compared with. In a config it may be left out: it
            is that of the split.
        metric: 'bbox', 'segm' (masks), or a list of both.
        outfile_prefix: Where the predictions are kept, as ``PREFIX.bbox.json`` and
            ``PREFIX.segm.json``, in the form of COCO's results.
        format_only: Whether nothing but that is done.
        collect_device: See :class:`mmengine.evaluator.BaseMetric`.
        prefix: As there.

    Attributes:
        per_class: Of the last evaluation, for each class {'class': its name, 'coco/bbox_AP': ...};
            None before.

    Raises:
        UserError: If the JSON cannot be read or has no annotation of the classes.
    """

    per_class: list[dict[str, str | float]] | None = None

    def __init__(
        self, ann_file: str | None = None, metric: str | Sequence[str] = 'bbox',
        outfile_prefix: str | None = None, format_only: bool = False,
        collect_device: str = 'cpu', prefix: str | None = None,
    ) -> None:
        kinds = [metric] if isinstance(metric, str) else list(metric)
        wrong = [kind for kind in kinds if kind not in ('bbox', 'segm')]
        if wrong or not kinds:
            raise UserError(f"CocoMetric: metric is 'bbox', 'segm' or both, not {metric!r}")
        super().__init__(
            metric=kinds, outfile_prefix=outfile_prefix, format_only=format_only,
            collect_device=collect_device, prefix=prefix)
        if ann_file is None:
            raise UserError('CocoMetric: no ann_file, the JSON that predictions are compared with')
        found = coco.read(ann_file)
        found.raise_first()
        self.ann_file, self._found = str(ann_file), found
        self._coco_api = COCO()
        self._coco_api.dataset = dict(
            images=found.images, annotations=found.annotations, categories=found.categories)
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The figures of a data set.

        Args:
            results: (not used, prediction) of each image, see ``process`` of mmdet's.

        Returns:
            ``bbox_mAP``, ``bbox_mAP_50``, ..., ``segm_mAP``, ...
        """
        if not results:
            raise ValueError('CocoMetric has no results: the evaluated data set holds no image')
        predictions = [prediction for _, prediction in results]
        classes = self.dataset_meta['classes']
        self.cat_ids = list(self._found.label_of(classes))
        ids = [prediction['img_id'] for prediction in predictions]
        unknown = set(ids) - {image['id'] for image in self._found.images}
        if unknown:
            raise UserError(f'{self.ann_file} has no image {min(map(str, unknown))}, which was '
                            'predicted: it is the JSON of other images')
        if self.outfile_prefix is not None:
            self.results2json(predictions, self.outfile_prefix)
        if self.format_only:
            return {}
        found, rows = {}, [{'class': name} for name in classes]
        for kind in self.metrics:
            if kind == 'segm' and not any('masks' in each for each in predictions):
                raise UserError("CocoMetric: metric 'segm' needs masks, and the model gives none; "
                                "set val_evaluator.metric='bbox' (and test_evaluator's)")
            figures, by_class = self._evaluate(kind, predictions, ids)
            found.update(figures)
            for row, value in zip(rows, by_class, strict=True):
                row[f'{kind}_AP'] = value
        prefix = f'{self.prefix}/' if self.prefix else ''
        self.per_class = [
            {key if key == 'class' else prefix + key: value for key, value in row.items()
             if value is not None} for row in rows]
        columns = [f'{kind}_AP' for kind in self.metrics]
        tell_classes(('class', *columns), [
            (row['class'], *('-' if row[key] is None else f'{row[key]:.2f}' for key in columns))
            for row in rows])
        return found

    def _evaluate(
        self, kind: str, predictions: list[dict], ids: list
    ) -> tuple[dict[str, float], list[float | None]]:
        """Figures, and the average precision of each class; None: it has no annotation."""
        found = COCO()
        found.dataset = dict(
            images=self._found.images, categories=self._found.categories, annotations=[])
        rows = self.as_coco(predictions, kind)
        with contextlib.redirect_stdout(io.StringIO()):
            found = self._coco_api.loadRes(rows) if rows else found
            if not rows:
                found.createIndex()
            evaluation = COCOeval(self._coco_api, found, kind)
            evaluation.params.catIds, evaluation.params.imgIds = self.cat_ids, sorted(ids, key=str)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        if evaluation.stats[0] < 0:
            raise UserError(
                f'{self.ann_file} has no annotation of the classes '
                f'{", ".join(self.dataset_meta["classes"])}: there is nothing to compare with')
        figures = {f'{kind}_{name}': 100 * float(evaluation.stats[place])
                   for name, place in _FIGURES.items() if evaluation.stats[place] >= 0}
        # (overlaps, recalls, classes, sizes: all first, predictions an image: most last)
        precision = evaluation.eval['precision'][:, :, :, 0, -1]
        order = [evaluation.params.catIds.index(category) for category in self.cat_ids]
        return figures, [_mean(precision[:, :, place]) for place in order]

    def as_coco(self, predictions: Sequence[dict], kind: str = 'bbox') -> list[dict]:
        """Predictions in the form of COCO's results."""
        rows = []
        for each in predictions:
            scores = each.get('mask_scores', each['scores']) if kind == 'segm' else each['scores']
            for i, label in enumerate(each['labels']):
                row = dict(image_id=each['img_id'], category_id=self.cat_ids[label],
                           score=float(scores[i]))
                if kind == 'bbox':
                    row['bbox'] = self.xyxy2xywh(each['bboxes'][i])
                else:  # without a box: the area is the mask's
                    row['segmentation'] = each['masks'][i]
                rows.append(row)
        return rows


def _mean(values: np.ndarray) -> float | None:
    """The mean of what there is, in percent; None: nothing is."""
    values = values[values > -1]
    return 100 * float(values.mean()) if values.size else None
