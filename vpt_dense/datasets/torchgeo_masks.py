"""torchgeo's data sets of images and masks."""

from collections.abc import Mapping
from typing import Any

from vpt_dense.argument_checks import check_flag
from vpt_dense.datasets import geo_samples
from vpt_dense.datasets.seg_folder import SegFolder
from vpt_dense.errors import UserError
from vpt_dense.registry import DATASETS


@DATASETS.register_module()
class TorchGeo(SegFolder):
    """A data set of torchgeo's (https://torchgeo.readthedocs.io), of images with a mask each.

    Files, splits and what the labels mean are torchgeo's; resizing, cropping and augmentation are
    the pipeline's, which reads images by :class:`vpt_dense.datasets.loading.LoadBands`.

    Args:
        name: Of a class of ``torchgeo.datasets``, a ``NonGeoDataset``: ``Potsdam2D``.
        data_root: Its folder, torchgeo's ``root``.
        split: As the class has them; a class without splits has none.
        arguments: Further arguments of the class: ``dict(scene=['urban'])``, ``dict(bands=[...])``.
        with_masks: False for images to predict; torchgeo's sets keep the masks of some splits.
        metainfo: As in :class:`vpt_dense.datasets.seg_folder.SegFolder`; ``classes`` and
            ``palette`` left out: torchgeo's, if it has them.
        reduce_zero_label: As there. None: as the set needs it, which only of LoveDA is True.
        **kwargs: As there, without what says where files are.

    Raises:
        UserError: torchgeo is not installed, the set, its split or its arguments are not what it
            has, the files are not there, the split has no masks, or an argument says where files
            are; and as there.
    """

    def __init__(
        self,
        name: str,
        data_root: str,
        split: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        with_masks: bool = True,
        metainfo: dict | None = None,
        reduce_zero_label: bool | None = None,
        **kwargs,
    ) -> None:
        geo_samples.refuse_places(kwargs, type(self).__name__)
        self.source = geo_samples.open_set(name, data_root, split, arguments)
        metainfo = dict(metainfo or {})
        if not metainfo.get('classes') and self.source.classes:
            metainfo['classes'] = list(self.source.classes)
        if self.source.palette and len(metainfo.get('classes') or ()) == len(self.source.palette):
            metainfo.setdefault('palette', self.source.palette)
        if check_flag(with_masks, 'dataset.with_masks') and not self.source.has('mask'):
            raise UserError(
                f"dataset: torchgeo's {name} has no masks" + (f' in {split!r}' if split else '')
                + '; images to predict: with_masks=False, or --no-labels')
        prefix = dict(img_path=self.source.images)
        if with_masks:
            prefix['seg_map_path'] = self.source.masks
        super().__init__(
            metainfo, prefix, reduce_zero_label=name in geo_samples.REDUCED
            if reduce_zero_label is None else reduce_zero_label, **kwargs)

    def list_pairs(self) -> tuple[list[tuple[str, str | None]], list[str]]:
        """Lists [(image, its mask or None)], and no masks without an image."""
        names = [f'{name}{geo_samples.SUFFIX}' for name in self.source.numbers]
        with_masks = self.data_prefix.get('seg_map_path') is not None
        return [(f'{self.source.images}/{name}',
                 f'{self.source.masks}/{name}' if with_masks else None) for name in names], []
