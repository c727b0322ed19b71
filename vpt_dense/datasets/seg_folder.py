"""A segmentation data set made of a folder of images and a folder of masks."""

from collections.abc import Sequence

from mmengine.dataset import BaseDataset

from vpt_dense.argument_checks import check_flag
from vpt_dense.datasets.checks import IMAGE_SUFFIXES, MASK_SUFFIXES, pair_files
from vpt_dense.errors import UserError
from vpt_dense.registry import DATASETS
from vpt_dense.visualization.drawing import make_palette


@DATASETS.register_module()
class SegFolder(BaseDataset):
    """Images and masks of the same name in two folders; any image format on either side.

    Does what mmseg's ``BaseSegDataset`` does for a folder, but takes mixed suffixes and says which
    image lacks its mask.

    Args:
        metainfo: ``classes`` (names; the position is the label) and ``palette`` (one [R, G, B] for
            each class; made up if left out).
        data_prefix: ``img_path`` and ``seg_map_path``, relative to ``data_root``. Without
            ``seg_map_path`` the images have no masks (to predict only).
        img_suffix: What an image's name ends in; the rest must equal the mask's name.
        seg_map_suffix: What a mask's name ends in.
        ignore_index: The label that is left out, 0 to 255; said in a config, heads, losses, metrics
            and pipelines follow (:func:`vpt_dense.ignore_index.place`).
        reduce_zero_label: Whether label 0 is left out too and 1 becomes the first class, as in
            ADE20K.
        label_map: {label in a mask: the label that it becomes}, after ``reduce_zero_label``:
            {255: 1} for masks of 0 and 255.
        ann_file: A text file, relative to ``data_root``, with the names of the images to take, one
            a line, relative to the folder of images, with or without suffix. Without it all.
        ignore_negative: Whether labels below 0, which masks of signed integers may have, are left
            out; otherwise they are an error.
        **kwargs: See ``mmengine.dataset.BaseDataset``.

    Raises:
        UserError: The classes are not given, the palette has another length, a folder is absent or
            empty, an image has no mask, or ``ann_file`` is absent, empty, or has a name twice or
            one that is no image; or ``label_map`` is none.
    """

    METAINFO: dict = {}

    def __init__(
        self,
        metainfo: dict | None = None,
        data_prefix: dict | None = None,
        img_suffix: str | Sequence[str] = IMAGE_SUFFIXES,
        seg_map_suffix: str | Sequence[str] = MASK_SUFFIXES,
        ignore_index: int = 255,
        reduce_zero_label: bool = False,
        label_map: dict[int, int] | None = None,
        ann_file: str = '',
        ignore_negative: bool = False,
        **kwargs,
    ) -> None:
        metainfo = dict(metainfo or {})
        classes = metainfo.get('classes')
        if not classes:
            raise UserError("dataset.classes: name the classes in label order: ['road', 'car']")
        palette = metainfo.setdefault('palette', make_palette(len(classes)))
        if len(palette) != len(classes):
            raise UserError(
                f'dataset.palette has {len(palette)} colours for {len(classes)} dataset.classes'
            )
        self.img_suffix = img_suffix
        self.seg_map_suffix = seg_map_suffix
        self.ignore_index = ignore_index
        self.reduce_zero_label = reduce_zero_label
        self.label_map = _check_label_map(label_map)
        self.ignore_negative = check_flag(ignore_negative, 'dataset.ignore_negative')
        metainfo |= dict(label_map=self.label_map, reduce_zero_label=reduce_zero_label)
        if data_prefix is None:
            data_prefix = dict(img_path='images', seg_map_path='annotations')
        super().__init__(
            ann_file=ann_file, metainfo=metainfo, data_prefix=dict(data_prefix), **kwargs
        )

    def list_pairs(self) -> tuple[list[tuple[str, str | None]], list[str]]:
        """Lists [(image, its mask or None)] and the masks without an image."""
        masks = self.data_prefix.get('seg_map_path')
        return pair_files(
            self.data_prefix['img_path'], masks, self.img_suffix, self.seg_map_suffix, self.ann_file
        )

    def load_data_list(self) -> list[dict]:
        """Lists the samples in the form of mmseg's transforms."""
        pairs, _ = self.list_pairs()
        with_masks = self.data_prefix.get('seg_map_path') is not None
        bare = [image for image, mask in pairs if mask is None]
        if with_masks and bare:
            raise UserError(
                f'{len(bare)} of {len(pairs)} images have no mask in '
                f'{self.data_prefix["seg_map_path"]}, e.g. {bare[0]}'
            )
        common = dict(label_map=self.label_map, reduce_zero_label=self.reduce_zero_label)
        if self.ignore_negative:
            common['ignore_negative'] = True
        if not with_masks:
            return [dict(common, img_path=image, seg_fields=[]) for image, _ in pairs]
        return [dict(common, img_path=i, seg_map_path=m, seg_fields=[]) for i, m in pairs]


def _check_label_map(label_map: dict | None) -> dict[int, int] | None:
    """A map of integers; where a config was written to a file, its keys have become texts."""
    try:
        found = {int(old): new for old, new in (label_map or {}).items()}
        bytes([*found, *found.values()])  # refuses what is no integer from 0 to 255
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            'dataset.label_map must be a dict of labels from 0 to 255, such as {255: 1}, found '
            f'{label_map!r}'
        ) from error
    return found or None
