"""What a test of a detector finds, as files in the form of COCO's results. Needs mmdet."""

import json
from pathlib import Path
from typing import Any

from mmdet.structures.mask import encode_mask_results
from mmengine.dist import collect_results, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from vpt_dense import safe_files, segments
from vpt_dense.datasets.names import leaves, picture_names
from vpt_dense.registry import HOOKS
from vpt_dense.safe_files import shortened


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


@HOOKS.register_module()
class SegmentsHook(Hook):
    """Stores the panoptic maps of a test in COCO's form: PNGs, and ``panoptic.json`` beside them.

    ``OUT_DIR/city0/frame.png`` for the image ``city0/frame.jpg`` of the folder of images; ids of
    images and categories are those of the data set's JSON. Every process writes its own PNGs.

    Args:
        out_dir: The folder.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)
        self._found: list[dict] = []

    def before_test(self, runner: Runner) -> None:
        """Start anew."""
        dataset = runner.test_loop.dataloader.dataset
        self._name_of, self._found = picture_names(dataset), []
        self._classes = tuple(dataset.metainfo['classes'])
        self._things = len(dataset.metainfo['thing_classes'])

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write the maps of a batch."""
        for sample in outputs:
            ids, labels = segments.found_segments(
                sample.pred_panoptic_seg.sem_seg[0].cpu().numpy(), len(self._classes))
            name = self._name_of(sample.img_path)
            path = shortened(self.out_dir / name)
            with safe_files.atomic(path) as unfinished, unfinished.open('wb') as stream:
                Image.fromarray(segments.to_colours(ids)).save(stream, 'png')
            self._found.append(dict(
                segments.rows_of(ids, labels, self._classes, self._things),
                image_id=sample.metainfo.get('img_id'), file=sample.img_path,
                file_name=path.relative_to(self.out_dir).as_posix()))

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Write what all processes have found."""
        dataset = runner.test_loop.dataloader.dataset
        found = collect_results(self._found, len(dataset), 'gpu')
        self._found = []
        if not is_main_process():
            return
        ids = next((part.cat_ids for part in leaves(dataset) if hasattr(part, 'cat_ids')), None)
        content = segments.as_coco(
            [(each['image_id'], each['file'], each) for each in found], self._classes, self._things)
        for category in content['categories'] if ids else ():
            category['id'] = ids[category['id']]
        for annotation in content['annotations'] if ids else ():
            for segment in annotation['segments_info']:
                segment['category_id'] = ids[segment['category_id']]
        safe_files.write_text(
            self.out_dir / 'panoptic.json', json.dumps(content, ensure_ascii=False) + '\n')
        runner.logger.info('%d panoptic maps written to %s', len(found), self.out_dir)


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
