"""What a test of a detector finds, as a file in the form of COCO's results. Needs mmdet."""

import json
from typing import Any

from mmdet.structures.mask import encode_mask_results
from mmengine.dist import collect_results, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vpt_dense import safe_files
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class BoxesHook(Hook):
    """Stores what a test finds in a ``.json``: a list, as COCO's evaluation takes it.

    ``{"image_id": as in the annotations, "file": the image, "category_id": likewise, "class": its
    name, "bbox": [x, y, width, height] in pixels, "score": 0 to 1}``, and ``"segmentation"``, run
    lengths, of models that find masks. In the order of the data set.

    Args:
        out_file: The file.
    """

    def __init__(self, out_file: str) -> None:
        self.out_file = str(out_file)
        self._found: list[list[dict]] = []

    def before_test(self, runner: Runner) -> None:
        """Start anew."""
        self._found = []

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Keep what was found."""
        meta = runner.test_loop.dataloader.dataset.metainfo
        self._found += [_rows(sample, meta.get('classes') or ()) for sample in outputs]

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Write what all processes have found."""
        dataset = runner.test_loop.dataloader.dataset
        found = collect_results(self._found, len(dataset), 'gpu')
        self._found = []
        if not is_main_process():
            return
        part = dataset
        while hasattr(part, 'dataset') or hasattr(part, 'datasets'):
            part = part.dataset if hasattr(part, 'dataset') else part.datasets[0]
        ids = getattr(part, 'cat_ids', None)
        rows = [row for image in found for row in image]
        for row in rows:
            label = row.pop('label')
            row['category_id'] = ids[label] if ids else label
        safe_files.write_text(self.out_file, json.dumps(rows, ensure_ascii=False) + '\n')
        runner.logger.info('%d boxes written to %s', len(rows), self.out_file)


def _rows(sample: Any, classes: Any) -> list[dict]:
    found = sample.pred_instances.to('cpu')
    masks = None
    if 'masks' in found:
        masks = encode_mask_results(found.masks.numpy())
    rows = []
    for i, (box, label, score) in enumerate(zip(
            found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)):
        row = {
            'image_id': sample.metainfo.get('img_id'), 'file': sample.metainfo.get('img_path'),
            'label': label, 'class': classes[label] if classes else str(label),
            'bbox': [box[0], box[1], box[2] - box[0], box[3] - box[1]], 'score': score}
        if masks is not None:
            row['segmentation'] = dict(masks[i], counts=_text(masks[i]['counts']))
        rows.append(row)
    return rows


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
