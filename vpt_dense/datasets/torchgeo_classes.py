"""torchgeo's data sets of images of one class each."""

from collections.abc import Mapping
from typing import Any

from mmpretrain.datasets import BaseDataset

from vpt_dense.argument_checks import check_flag
from vpt_dense.datasets import geo_samples
from vpt_dense.errors import UserError
from vpt_dense.registry import DATASETS


@DATASETS.register_module()
class TorchGeoClasses(BaseDataset):
    """A data set of torchgeo's (https://torchgeo.readthedocs.io), of images of one class each.

    See :class:`vpt_dense.datasets.torchgeo_masks.TorchGeo`. Of sets that are no folders of classes
    every sample is read once to know its label.

    Args:
        name: As there: ``RESISC45``.
        data_root: As there.
        split: As there.
        arguments: As there.
        with_label: False for images to predict.
        metainfo: ``classes``; left out: torchgeo's. If torchgeo has them they must be the same.
        **kwargs: See ``mmpretrain.datasets.BaseDataset``, without what says where files are.

    Raises:
        UserError: As there, or other classes are said than torchgeo has, or a sample has no label
            of one class.
    """

    def __init__(
        self,
        name: str,
        data_root: str,
        split: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        with_label: bool = True,
        metainfo: dict | None = None,
        **kwargs,
    ) -> None:
        geo_samples.refuse_places(kwargs, type(self).__name__)
        self.source = geo_samples.open_set(name, data_root, split, arguments)
        self.with_label = check_flag(with_label, 'dataset.with_label')
        metainfo, known = dict(metainfo or {}), self.source.classes
        classes = metainfo.setdefault('classes', known)
        if not classes:
            raise UserError(
                f"dataset.classes: torchgeo does not name the classes of {name}; say them in the "
                "order of the labels: ['yes', 'no']")
        if known and tuple(classes) != known:
            raise UserError(
                f"dataset.classes are {list(classes)}, but torchgeo's {name} has {list(known)}: a "
                'label would mean another class; leave them out')
        super().__init__(
            ann_file='', data_prefix=self.source.images, metainfo=metainfo, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Lists [dict(img_path, gt_label)], or without labels [dict(img_path)]."""
        paths = [f'{self.source.images}/{name}{geo_samples.SUFFIX}' for name in self.source.numbers]
        if not self.with_label:
            return [dict(img_path=path) for path in paths]
        labels, number = self.source.labels(), len(self.CLASSES)
        wrong = next((label for label in labels if not 0 <= label < number), None)
        if wrong is not None:
            raise UserError(
                f"dataset: torchgeo's {self.source.name} has a label {wrong}, but there are "
                f'{number} dataset.classes')
        return [dict(img_path=path, gt_label=label)
                for path, label in zip(paths, labels, strict=True)]
