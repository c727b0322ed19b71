"""EuroSAT: ten kinds of land cover, Sentinel-2, with the split that is in common use."""

import os

from mmpretrain.datasets import BaseDataset

from vpt_dense.argument_checks import check_choice
from vpt_dense.datasets import listing
from vpt_dense.datasets.layouts import EUROSAT_CLASSES
from vpt_dense.errors import UserError
from vpt_dense.registry import DATASETS

SPLITS = ('train', 'val', 'test')


@DATASETS.register_module()
class EuroSAT(BaseDataset):
    """EuroSAT as ``EuroSATallBands.zip`` unpacks: TIFFs of 13 bands, 64 x 64 pixels.

    ``eurosat-train.txt``, ``-val.txt`` and ``-test.txt`` (16,200, 5,400 and 5,400 images) lie in
    ``data_root``: the split of Neumann et al. (https://arxiv.org/abs/1911.06721), which torchgeo
    has too. A line is ``AnnualCrop_1.jpg``; the file is ``AnnualCrop/AnnualCrop_1.tif``.

    Args:
        data_root: The folder.
        split: ``train``, ``val`` or ``test``.
        data_prefix: The folder in it that has a folder for each class.
        img_suffix: What the images' names end in.
        metainfo: As in mmpretrain; ``classes``, if said, must be the set's.
        **kwargs: See ``mmpretrain.datasets.BaseDataset``.

    Raises:
        UserError: The list is absent or names an image twice, of no class, or that is not there.
    """

    def __init__(
        self, data_root: str, split: str = 'train',
        data_prefix: str = 'ds/images/remote_sensing/otherDatasets/sentinel_2/tif',
        img_suffix: str = '.tif', metainfo: dict | None = None, **kwargs,
    ) -> None:  # fmt: skip
        self.split, self.img_suffix = check_choice(split, 'dataset.split', SPLITS), img_suffix
        metainfo = dict(metainfo or {})
        classes = metainfo.setdefault('classes', EUROSAT_CLASSES)
        if tuple(classes) != EUROSAT_CLASSES:
            raise UserError(f'dataset.classes of EuroSAT are {list(EUROSAT_CLASSES)}, found '
                            f'{list(classes)}; leave them out')
        super().__init__(ann_file=f'eurosat-{split}.txt', data_root=data_root,
                         data_prefix=data_prefix, metainfo=metainfo, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Lists [dict(img_path, gt_label)], in the order of the list."""
        samples = []
        for line, number in listing.read_names(self.ann_file).items():
            stem = os.path.splitext(line)[0]
            name = stem.partition('_')[0]
            path = os.path.join(self.img_prefix, name, f'{stem}{self.img_suffix}')
            if name not in EUROSAT_CLASSES or not os.path.isfile(path):
                raise UserError(f'{self.ann_file}, line {number}: {line!r} is no image ({path})')
            samples.append(dict(img_path=path, gt_label=EUROSAT_CLASSES.index(name)))
        return samples
