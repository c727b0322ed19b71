"""Public data sets by name: their folders, suffixes and classes, as they are unpacked.

Tables only; :class:`vpt_dense.datasets.public_set.PublicSet` reads them. Class names and label ids
are those that the authors of each set publish; the order is that of its benchmark.
"""

from collections.abc import Mapping
from typing import NamedTuple

from vpt_dense.errors import UserError, suggest


class Layout(NamedTuple):
    """How a public set lies on the disk.

    Attributes:
        field: ``driving``, ``satellite`` or ``medical``.
        classes: Their names, in label order.
        images: The folder of images below the data folder; ``{split}`` stands for the split's.
        masks: That of the masks.
        img_suffix: What the images' names end in.
        seg_map_suffix: What those of the masks end in.
        splits: Name of a split -> its folder.
        lists: Name of a split -> lists of names, below the data folder; the first that is there
            counts. Empty: a split is a folder.
        listed_suffix: What the listed names end in; the rest is a name without suffix.
        ids: {label in a mask: class}; labels that are not in it are ignored. None: masks hold
            the classes.
        parts: Folders inside of both folders, each with the splits, e.g. weathers.
        reduce_zero_label: Whether label 0 is ignored and 1 is the first class.
        ignore_negative: Whether labels below 0 are ignored.
        palette: A colour for each class; None: made up.
    """

    field: str
    classes: tuple[str, ...]
    images: str
    masks: str
    img_suffix: str = '.png'
    seg_map_suffix: str = '.png'
    splits: Mapping[str, str] = {'train': 'train', 'val': 'val', 'test': 'test'}
    lists: Mapping[str, tuple[str, ...]] = {}
    listed_suffix: str = ''
    ids: Mapping[int, int] | None = None
    parts: tuple[str, ...] = ()
    reduce_zero_label: bool = False
    ignore_negative: bool = False
    palette: tuple[tuple[int, int, int], ...] | None = None


# --- driving: the 19 classes of Cityscapes -----------------------------------------------------

#: Name, id in ``*_labelIds.png``, colour (https://www.cityscapes-dataset.com, its label table).
_STREETS = (
    ('road', 7, (128, 64, 128)), ('sidewalk', 8, (244, 35, 232)), ('building', 11, (70, 70, 70)),
    ('wall', 12, (102, 102, 156)), ('fence', 13, (190, 153, 153)), ('pole', 17, (153, 153, 153)),
    ('traffic light', 19, (250, 170, 30)), ('traffic sign', 20, (220, 220, 0)),
    ('vegetation', 21, (107, 142, 35)), ('terrain', 22, (152, 251, 152)),
    ('sky', 23, (70, 130, 180)), ('person', 24, (220, 20, 60)), ('rider', 25, (255, 0, 0)),
    ('car', 26, (0, 0, 142)), ('truck', 27, (0, 0, 70)), ('bus', 28, (0, 60, 100)),
    ('train', 31, (0, 80, 100)), ('motorcycle', 32, (0, 0, 230)), ('bicycle', 33, (119, 11, 32)),
)  # fmt: skip
STREET_CLASSES = tuple(name for name, _, _ in _STREETS)
#: {id: class}; all other ids, 0 to 6 (void), 34 (licence plate in GTAV) and so on, are ignored.
STREET_IDS = {number: label for label, (_, number, _) in enumerate(_STREETS)}
_COLOURS = tuple(colour for _, _, colour in _STREETS)

LAYOUTS: dict[str, Layout] = {
    'cityscapes': Layout(
        'driving', STREET_CLASSES, 'leftImg8bit/{split}', 'gtFine/{split}', '_leftImg8bit.png',
        '_gtFine_labelIds.png', ids=STREET_IDS, palette=_COLOURS),
    # Masks of train ids, 255 is ignored.
    'bdd100k': Layout(
        'driving', STREET_CLASSES, 'images/10k/{split}', 'labels/sem_seg/masks/{split}', '.jpg',
        splits=dict(train='train', val='val'), palette=_COLOURS),
    'acdc': Layout(
        'driving', STREET_CLASSES, 'rgb_anon', 'gt', '_rgb_anon.png', '_gt_labelTrainIds.png',
        splits=dict(train='train', val='val'), parts=('fog', 'night', 'rain', 'snow'),
        palette=_COLOURS),
    # PNGs with a palette; their indices are Cityscapes' ids.
    'gtav': Layout(
        'driving', STREET_CLASSES, 'images', 'labels', splits=dict(all=''), ids=STREET_IDS,
        palette=_COLOURS),
}


def layout_of(name: object) -> Layout:
    """The layout of a set.

    Raises:
        UserError: If there is none of that name.
    """
    if not isinstance(name, str) or name not in LAYOUTS:
        raise UserError(
            f'dataset.name: {name!r} is none of the public sets {", ".join(LAYOUTS)}'
            f'{suggest(str(name), LAYOUTS)}; any other is a vpt_dense.SegFolder')
    return LAYOUTS[name]
