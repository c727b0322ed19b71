"""Classification data sets whose images and labels stand in a list: any, VTAB-1k's, FGVC's."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmpretrain.datasets import BaseDataset

from vpt_dense.argument_checks import check_choice, check_count
from vpt_dense.datasets.list_files import (
    FGVC_SPLITS, VTAB_SPLITS, class_names, find_prefix, lists_of, read_list, vtab_task,
)
from vpt_dense.registry import DATASETS


@DATASETS.register_module()
class ImageList(BaseDataset):
    """Images and labels of a list: a text file, or the JSON files that fine-grained sets share.

    The classes are ``metainfo.classes``; or ``num_classes`` of them, called by their numbers; or
    the lines of ``data_root``/classes.txt; or the labels of the first of train.json and trainval.json
    in ``data_root``, sorted.

    Args:
        ann_file: The list, relative to ``data_root``; or several. A text file has a line
            ``PATH LABEL`` for each image, labels from 0; a JSON file is ``{PATH: CLASS}``.
        data_root: Folder of the lists.
        data_prefix: Folder in ``data_root`` that the paths are relative to.
        metainfo: ``classes``.
        num_classes: Their number, instead of names.
        **kwargs: See ``mmpretrain.datasets.BaseDataset``.

    Raises:
        UserError: If a list is absent, empty or broken, names an image twice or one that is not
            there, or has a label that is none of the classes; or nothing says the classes.
    """

    def __init__(
        self,
        ann_file: str | Sequence[str],
        data_root: str = '',
        data_prefix: str = '',
        metainfo: Mapping[str, Any] | None = None,
        num_classes: int | None = None,
        **kwargs,
    ) -> None:
        self.lists = [ann_file] if isinstance(ann_file, str) else list(ann_file)
        if num_classes is not None:
            check_count(num_classes, 'dataset.num_classes')
        metainfo = dict(metainfo or {})
        metainfo['classes'] = class_names(data_root, metainfo.get('classes'), num_classes)
        super().__init__(
            ann_file='', data_root=data_root, data_prefix=data_prefix, metainfo=metainfo, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Lists [dict(img_path, gt_label)], in the order of the lists."""
        paths = [os.path.join(self.data_root, name) for name in self.lists]
        samples = read_list(paths, self.img_prefix or self.data_root, self.CLASSES)
        return [dict(img_path=path, gt_label=label) for path, label in samples]


@DATASETS.register_module()
class VTAB(ImageList):
    """A task of VTAB-1k in the folders that the field shares, without TensorFlow.

    ``DATA_ROOT/{images/, train800.txt, val200.txt, train800val200.txt, test.txt}``; the folder's
    name says which of the 19 tasks it is, and so how many classes there are. Paths in the lists are
    relative to it.

    Args:
        data_root: Folder of the task, such as data/vtab-1k/dtd.
        split: The list: train800, val200, train800val200 or test.
        metainfo: ``classes``, names instead of numbers; for a folder of a task of one's own too.
        **kwargs: See :class:`ImageList`.

    Raises:
        UserError: As :class:`ImageList`; or the folder is named after no task.
    """

    def __init__(
        self, data_root: str, split: str = 'train800val200',
        metainfo: Mapping[str, Any] | None = None, **kwargs,
    ) -> None:  # fmt: skip
        check_choice(split, 'dataset.split', VTAB_SPLITS)
        if kwargs.get('num_classes') is None and not (metainfo or {}).get('classes'):
            kwargs['num_classes'] = vtab_task(data_root).classes
        super().__init__(f'{split}.txt', data_root, metainfo=metainfo, **kwargs)


@DATASETS.register_module()
class FGVC(ImageList):
    """A fine-grained set with lists as the VPT paper's: train.json, val.json, test.json.

    ``vpt-dense data lists`` writes them from the authors' own files.

    Args:
        data_root: Folder of the lists.
        split: train, val, test; or trainval, which is train and val.
        data_prefix: Folder in ``data_root`` that the paths are relative to; None: images, Images,
            jpg or ``data_root`` itself, the first in which the first image is.
        **kwargs: See :class:`ImageList`.

    Raises:
        UserError: As :class:`ImageList`.
    """

    def __init__(
        self, data_root: str, split: str = 'train', data_prefix: str | None = None, **kwargs,
    ) -> None:  # fmt: skip
        check_choice(split, 'dataset.split', FGVC_SPLITS)
        lists = lists_of(dict(type='FGVC', split=split))
        if data_prefix is None:
            data_prefix = find_prefix(data_root, lists[0])
        super().__init__(lists, data_root, data_prefix, **kwargs)
