"""A panoptic data set: a folder of images, one of PNGs of segments, and one JSON for each split."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets import CocoPanopticDataset
from mmdet.structures.bbox import get_box_type
from mmdet.structures.mask import BitmapMasks
from mmengine.logging import print_log

from vpt_dense.datasets import coco, panoptic
from vpt_dense.errors import UserError
from vpt_dense.registry import DATASETS, TRANSFORMS
from vpt_dense.visualization import make_palette

#: The label of pixels of no segment, as mmdet has it; classes are fewer.
VOID = 255


@DATASETS.register_module()
class PanopticFolder(CocoPanopticDataset):
    """mmdet's ``CocoPanopticDataset`` for any classes, which says what is wrong with the JSON.

    Labels are the positions of the classes: things first, then stuff. mmdet's needs a palette and
    names of things and stuff in the config, finds classes by the order of the JSON, and a PNG by
    the name of its image.

    Args:
        metainfo: ``classes``, names of categories, things before stuff. Segments of others are
            void. None: those of the JSON. ``thing_classes``: which of them are things; None: the
            JSON says it. ``palette``: one [R, G, B] for each; made up if left out.
        ann_file: The JSON, relative to ``data_root``.
        data_prefix: ``img`` and ``seg``: the folders of images and PNGs, relative to ``data_root``.
        **kwargs: See ``mmdet.datasets.CocoPanopticDataset``.

    Raises:
        UserError: If the JSON cannot be read, or something in it is not sound: it is named.
    """

    METAINFO: dict = {}

    def __init__(
        self, metainfo: dict | None = None, ann_file: str = '', data_prefix: dict | None = None,
        **kwargs,
    ) -> None:
        metainfo = dict(metainfo or {})
        config = dict(data_root=kwargs.get('data_root'), ann_file=ann_file, metainfo=metainfo)
        if not ann_file:
            raise UserError('PanopticFolder: no ann_file, the JSON of annotations')
        if not metainfo.get('classes'):
            metainfo['classes'] = panoptic.classes_of(config)
        classes = list(metainfo['classes'])
        if len(classes) >= VOID:
            raise UserError(f'PanopticFolder: {len(classes)} classes; at most {VOID - 1} can be '
                            f'told apart, {VOID} is the label of no segment')
        things = panoptic.things_of(config, classes)
        if things is None:
            raise UserError(f'PanopticFolder: no file {coco.ann_file_of(config)}, which would say '
                            'which classes are things; or name them, metainfo.thing_classes')
        if classes[: len(things)] != things:
            raise UserError(
                f'PanopticFolder: metainfo.thing_classes are {things}; the classes begin with '
                f'things, in the same order, and are {classes}')
        metainfo.update(thing_classes=things, stuff_classes=classes[len(things) :])
        metainfo.setdefault('palette', make_palette(len(classes)))
        prefix = dict(img=coco.IMAGES, seg=panoptic.SEGMENTS)
        super().__init__(metainfo=metainfo, ann_file=ann_file,
                         data_prefix=prefix if data_prefix is None else dict(data_prefix), **kwargs)

    def load_data_list(self) -> list[dict]:
        """The images with their segments, in mmdet's form."""
        found = panoptic.read(self.ann_file)
        found.raise_first()
        if not found.images:
            raise UserError(f'{self.ann_file} has no image')
        things, stuff = found.names(self.metainfo['classes'])
        if things != list(self.metainfo['thing_classes']):
            raise UserError(
                f'{self.ann_file}: things are {things}, and metainfo.thing_classes are '
                f'{list(self.metainfo["thing_classes"])}')
        labels = found.label_of(things + stuff)
        self.cat_ids, self.cat2label = list(labels), labels  # in the order of the labels
        by_image = {each['image_id']: each for each in found.annotations}
        data, left_out = [], 0
        for image in found.images:
            annotation = by_image[image['id']]
            segments = []
            for segment in annotation['segments_info']:
                label = labels.get(segment['category_id'])
                left_out += label is None
                segments.append(dict(
                    id=segment['id'], category=VOID if label is None else label,
                    is_thing=label is not None and label < len(things) and not segment['iscrowd']))
            data.append(dict(
                img_path=str(Path(self.data_prefix['img'], image['file_name'])),
                img_id=image['id'], height=image['height'], width=image['width'], instances=[],
                seg_map_path=str(Path(self.data_prefix['seg'], annotation['file_name'])),
                segments_info=segments))
        if left_out:
            print_log(
                f'{self.ann_file}: {left_out} segments are of categories that dataset.classes '
                'leaves out, and void', 'current', logging.WARNING)
        return data


@TRANSFORMS.register_module()
class LoadPanopticAnnotations(BaseTransform):
    """Reads the segments of an image; as mmdet's of this name, which needs a package of its own.

    ``gt_masks``, ``gt_bboxes`` (around the masks), ``gt_bboxes_labels`` and ``gt_ignore_flags`` of
    things that are no crowd, and ``gt_seg_map`` (H, W) uint8, the label of each pixel, 255 of void.
    Of crowds there is no mask.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Read.

        Raises:
            UserError: If the PNG does not fit the JSON or the image; it is named.
        """
        segments = results['segments_info']
        size = results['width'], results['height']
        path = Path(results['seg_map_path'])
        ids = panoptic.read_segments(
            path.parent, dict(file_name=path.name, segments_info=segments), size)
        if tuple(results['ori_shape']) != ids.shape:
            raise UserError(
                f'{results["img_path"]} has {results["ori_shape"][1]} x {results["ori_shape"][0]} '
                f'pixels, the JSON and {path} {size[0]} x {size[1]}')
        numbers = np.array([0, *(each['id'] for each in segments)])
        labels = np.array([VOID, *(each['category'] for each in segments)], np.uint8)
        order = np.argsort(numbers)
        results['gt_seg_map'] = labels[order][np.searchsorted(numbers, ids, sorter=order)]
        things = [each for each in segments if each['is_thing']]
        masks = [(ids == each['id']).astype(np.uint8) for each in things]
        results['gt_masks'] = BitmapMasks(masks, *ids.shape)
        _, boxes = get_box_type('hbox')
        results['gt_bboxes'] = results['gt_masks'].get_bboxes(boxes)
        results['gt_bboxes_labels'] = np.array([each['category'] for each in things], np.int64)
        results['gt_ignore_flags'] = np.zeros(len(things), bool)
        return results
