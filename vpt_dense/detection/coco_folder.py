"""A detection data set: a folder of images, and one JSON of annotations for each split."""

import logging
from pathlib import Path

from mmdet.datasets import CocoDataset
from mmengine.logging import print_log

from vpt_dense.datasets import coco
from vpt_dense.errors import UserError
from vpt_dense.registry import DATASETS
from vpt_dense.visualization import make_palette


@DATASETS.register_module()
class CocoFolder(CocoDataset):
    """mmdet's ``CocoDataset`` for any classes, which says what is wrong with the annotations.

    A class is found by its name, whatever its place in the JSON; in mmdet the JSON's order counts,
    and the names of ``classes`` in another order are those of other classes. Images without a box
    stay, and train as background (``filter_cfg=dict(filter_empty_gt=True)`` leaves them out).
    Boxes that mmdet leaves out, empty ones and those outside of their image, are told of once.

    Args:
        metainfo: ``classes``, names of categories; the position is the label. Others do not count.
            None: those of the JSON. ``palette``: one [R, G, B] for each; made up if left out.
        ann_file: The JSON, relative to ``data_root``.
        data_prefix: ``img``: the folder of the images, relative to ``data_root``.
        **kwargs: See ``mmdet.datasets.CocoDataset``.

    Raises:
        UserError: If the JSON cannot be read, or an annotation is not sound: it is named.
    """

    METAINFO: dict = {}

    def __init__(
        self, metainfo: dict | None = None, ann_file: str = '', data_prefix: dict | None = None,
        **kwargs,
    ) -> None:
        metainfo = dict(metainfo or {})
        config = dict(data_root=kwargs.get('data_root'), ann_file=ann_file)
        if not ann_file:
            raise UserError('CocoFolder: no ann_file, the JSON of annotations')
        if not metainfo.get('classes'):
            metainfo['classes'] = coco.classes_of(config)
        metainfo.setdefault('palette', make_palette(len(metainfo['classes'])))
        prefix = dict(img=coco.IMAGES) if data_prefix is None else dict(data_prefix)
        super().__init__(metainfo=metainfo, ann_file=ann_file, data_prefix=prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """The images with their boxes, in mmdet's form."""
        found = coco.read(self.ann_file)
        found.raise_first()
        if not found.images:
            raise UserError(f'{self.ann_file} has no image')
        labels = found.label_of(self.metainfo['classes'])
        self.cat_ids, self.cat2label = list(labels), labels  # in the order of the labels
        with_masks = any(getattr(step, 'with_mask', False) for step in self.pipeline.transforms)
        self.cat_img_map: dict = {category: set() for category in labels}
        data, left_out = [], []
        by_image = found.by_image()
        for image in found.images:
            instances = []
            for annotation in by_image[image['id']]:
                label = labels.get(annotation['category_id'])
                if label is None or annotation.get('ignore'):
                    continue
                box = annotation['bbox']
                fault = coco.box_fault(box, image['width'], image['height'])
                if fault in ('empty', 'outside') or annotation['area'] <= 0:
                    left_out.append(annotation['id'])
                    continue
                if with_masks and not annotation.get('segmentation'):
                    raise UserError(
                        f'{self.ann_file}: annotation {annotation["id"]} has no segmentation, and '
                        'the model learns masks; take a recipe of boxes')
                self.cat_img_map[annotation['category_id']].add(image['id'])
                instance = dict(
                    bbox=[box[0], box[1], box[0] + box[2], box[1] + box[3]], bbox_label=label,
                    ignore_flag=int(bool(annotation['iscrowd'])))
                if annotation.get('segmentation'):
                    instance['mask'] = annotation['segmentation']
                instances.append(instance)
            data.append(dict(
                img_path=str(Path(self.data_prefix['img'], image['file_name'])),
                img_id=image['id'], seg_map_path=None, height=image['height'],
                width=image['width'], instances=instances))
        if left_out:
            print_log(
                f'{self.ann_file}: {len(left_out)} annotations are left out, their boxes are empty '
                f'or outside of the image: {left_out[0]}, ... (vpt-dense check names all)',
                'current', logging.WARNING)
        return data
