"""Classification data sets whose images and labels stand in a list: any, VTAB-1k's, FGVC's."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmpretrain.datasets import BaseDataset

from vpt_dense.argument_checks import check_choice, check_count
from vpt_dense.datasets.list_files import (
    FGVC_SPLITS,
    VTAB_SPLITS,
    class_names,
    classes_of,
    find_prefix,
    lists_of,
    read_list,
)
from vpt_dense.registry import DATASETS


@DATASETS.register_module()
class ImageList(BaseDataset):
    """Images and labels of a list: a text file, or the JSON files that fine-grained sets share.

    The classes are ``metainfo.classes``; or the lines of ``data_root``/classes.txt, if these are
    what ``data_root``/train.json calls them; or ``num_classes`` of them, called by their numbers;
    or the labels in train.json, sorted.

    Args:
        ann_file: The list, relative to ``data_root``; or several. A text file has a line
            ``PATH LABEL`` for each image, labels from 0; a JSON file is ``{PATH: CLASS}``.
        data_root: Folder of the lists.
        data_prefix: Folder in ``data_root`` that the paths are relative to.
        metainfo: ``classes``.
        num_classes: Their number, where they have no names.
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
        ann_file: Another list, or several, of images of that split.
        metainfo: ``classes``, names instead of numbers. A task of one's own has them here or in
            ``data_root``/classes.txt.
        **kwargs: See :class:`ImageList`.

    Raises:
        UserError: As :class:`ImageList`; or the folder is named after no task.
    """

    def __init__(
        self, data_root: str, split: str = 'train800val200', ann_file: str | Sequence[str] = '',
        metainfo: Mapping[str, Any] | None = None, **kwargs,
    ) -> None:  # fmt: skip
        check_choice(split, 'dataset.split', VTAB_SPLITS)
        said = dict(
            type='VTAB', split=split, ann_file=ann_file, data_root=data_root, metainfo=metainfo,
            num_classes=kwargs.pop('num_classes', None))
        metainfo = dict(metainfo or {}, classes=classes_of(said))
        super().__init__(lists_of(said), data_root, metainfo=metainfo, **kwargs)


@DATASETS.register_module()
class FGVC(ImageList):
    """A fine-grained set with lists as the VPT paper's: train.json, val.json, test.json.

    ``vpt-dense data lists`` writes them from the authors' own files.

    Args:
        data_root: Folder of the lists.
        split: train, val, test; or trainval, which is train and val.
        ann_file: Another list, or several, of images of that split.
        data_prefix: Folder in ``data_root`` that the paths are relative to; None: images, Images,
            jpg or ``data_root`` itself, the first in which the first image is.
        **kwargs: See :class:`ImageList`.

    Raises:
        UserError: As :class:`ImageList`.
    """

    def __init__(
        self, data_root: str, split: str = 'train', ann_file: str | Sequence[str] = '',
        data_prefix: str | None = None, **kwargs,
    ) -> None:  # fmt: skip
        check_choice(split, 'dataset.split', FGVC_SPLITS)
        lists = lists_of(dict(type='FGVC', split=split, ann_file=ann_file))
        if data_prefix is None:
            data_prefix = find_prefix(data_root)
        super().__init__(lists, data_root, data_prefix, **kwargs)
