"""Public data sets by name: their folders, suffixes and classes, as they are unpacked.

Tables only; :class:`vpt_dense.datasets.public_set.PublicSet` reads them. Class names and label ids
are those that the authors of each set publish; the order is that of its benchmark.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vpt_dense.errors import UserError, suggest


class Layout(NamedTuple):
    """How a public set lies on the disk.

    Attributes:
        field: ``driving``, ``satellite`` or ``medical``.
        classes: Their names, in label order.
        images: The folder of images below the data folder; ``{split}`` stands for the split's
            folder, ``{part}`` for a part's.
        masks: That of the masks.
        img_suffix: What the images' names end in; ``{split}`` as above.
        seg_map_suffix: What those of the masks end in.
        splits: Name of a split -> its folder.
        unlabelled: Splits whose masks are not public.
        lists: Name of a split -> lists of names, below the data folder; the first that is there
            counts. Empty: a split is a folder.
        listed_suffix: What the listed names end in; the rest is a name without suffix.
        prefixes: What the names of images and of masks begin with, where that differs.
        ids: {label in a mask: class}; labels that are not in it are ignored. None: masks hold
            the classes.
        parts: Names of folders, all of which a split has: weathers, kinds of land.
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
    unlabelled: tuple[str, ...] = ()
    lists: Mapping[str, tuple[str, ...]] = {}
    listed_suffix: str = ''
    prefixes: tuple[str, str] = ('', '')
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

_FLOODS = 'v1.1'

LAYOUTS: dict[str, Layout] = {
    'cityscapes': Layout(
        'driving', STREET_CLASSES, 'leftImg8bit/{split}', 'gtFine/{split}', '_leftImg8bit.png',
        '_gtFine_labelIds.png', ids=STREET_IDS, palette=_COLOURS),
    # Masks of train ids, 255 is ignored.
    'bdd100k': Layout(
        'driving', STREET_CLASSES, 'images/10k/{split}', 'labels/sem_seg/masks/{split}', '.jpg',
        splits=dict(train='train', val='val'), palette=_COLOURS),
    'acdc': Layout(
        'driving', STREET_CLASSES, 'rgb_anon/{part}/{split}', 'gt/{part}/{split}',
        '_rgb_anon.png', '_gt_labelTrainIds.png', splits=dict(train='train', val='val'),
        parts=('fog', 'night', 'rain', 'snow'), palette=_COLOURS),
    # PNGs with a palette; their indices are Cityscapes' ids.
    'gtav': Layout(
        'driving', STREET_CLASSES, 'images', 'labels', splits=dict(all=''), ids=STREET_IDS,
        palette=_COLOURS),
    # --- satellites. Sentinel-2, 13 bands B1 to B12 with B8A behind B8; lists of its authors, as
    # terratorch reads them; -1 is no data.
    'sen1floods11': Layout(
        'satellite', ('land', 'water'), f'{_FLOODS}/data/flood_events/HandLabeled/S2Hand',
        f'{_FLOODS}/data/flood_events/HandLabeled/LabelHand', '_S2Hand.tif', '_LabelHand.tif',
        splits=dict.fromkeys(('train', 'val', 'test', 'bolivia'), ''), listed_suffix='_S1Hand.tif',
        lists={split: tuple(f'{_FLOODS}/splits/flood_handlabeled/flood_{name}_data.{ending}'
                            for ending in ('txt', 'csv'))
               for split, name in dict(train='train', val='valid', test='test',
                                       bolivia='bolivia').items()},
        ignore_negative=True),
    # Harmonised Landsat and Sentinel-2, bands B2, B3, B4, B8A, B11, B12; -1 is no data.
    'hls-burn-scars': Layout(
        'satellite', ('not burned', 'burned'), '{split}', '{split}', '_merged.tif', '.mask.tif',
        splits=dict(train='training', val='validation'), ignore_negative=True),
    # 0 is no data.
    'loveda': Layout(
        'satellite',
        ('background', 'building', 'road', 'water', 'barren', 'forest', 'agricultural'),
        '{split}/{part}/images_png', '{split}/{part}/masks_png',
        splits=dict(train='Train', val='Val', test='Test'), unlabelled=('test',),
        parts=('Rural', 'Urban'), reduce_zero_label=True),
    # As mmseg's converters cut and recode them.
    'potsdam': Layout(
        'satellite',
        ('impervious surface', 'building', 'low vegetation', 'tree', 'car', 'clutter'),
        'img_dir/{split}', 'ann_dir/{split}', splits=dict(train='train', val='val'),
        reduce_zero_label=True),
    'isaid': Layout(
        'satellite',
        ('background', 'ship', 'storage tank', 'baseball diamond', 'tennis court',
         'basketball court', 'ground track field', 'bridge', 'large vehicle', 'small vehicle',
         'helicopter', 'swimming pool', 'roundabout', 'soccer ball field', 'plane', 'harbor'),
        'img_dir/{split}', 'ann_dir/{split}', seg_map_suffix='_instance_color_RGB.png',
        splits=dict(train='train', val='val', test='test'), unlabelled=('test',)),
    # --- medicine. Abdomens (CT), RawData/Training of the challenge: volumes with 13 organs, of
    # which the eight of the common protocol are classes and the others background.
    'synapse': Layout(
        'medical',
        ('background', 'aorta', 'gallbladder', 'left kidney', 'right kidney', 'liver', 'pancreas',
         'spleen', 'stomach'),
        'img', 'label', '.nii.gz', '.nii.gz', splits=dict(all=''), prefixes=('img', 'label'),
        ids={0: 0, 1: 7, 2: 4, 3: 3, 4: 2, 5: 0, 6: 5, 7: 8, 8: 1, 9: 0, 10: 0, 11: 6, 12: 0,
             13: 0}),
    # Vessels of the retina, as it is unpacked.
    'drive': Layout(
        'medical', ('background', 'vessel'), '{split}/images', '{split}/1st_manual',
        '_{split}.tif', '_manual1.gif', splits=dict(train='training', test='test'),
        ids={0: 0, 255: 1}),
    # Optic disc and cup, as mmseg's converter recodes them.
    'refuge': Layout(
        'medical', ('background', 'optic cup', 'optic disc'), 'images/{split}',
        'annotations/{split}', splits=dict(train='training', val='validation', test='test')),
}


#: Classification: :class:`vpt_dense.datasets.eurosat.EuroSAT`.
EUROSAT_CLASSES = (
    'AnnualCrop', 'Forest', 'HerbaceousVegetation', 'Highway', 'Industrial', 'Pasture',
    'PermanentCrop', 'Residential', 'River', 'SeaLake')


def classes_of(dataset: Mapping[str, Any]) -> list[str] | None:
    """The classes of a data set's config, if they are known by its name; else None.

    Raises:
        UserError: If it is a ``PublicSet`` of a name that there is not.
    """
    kind = str(dataset.get('type')).rpartition('.')[2]
    if kind == 'EuroSAT':
        return list(EUROSAT_CLASSES)
    return list(layout_of(dataset.get('name')).classes) if kind == 'PublicSet' else None


def has_masks(dataset: Mapping[str, Any]) -> bool:
    """Whether a ``PublicSet``'s config has masks."""
    hidden = layout_of(dataset.get('name')).unlabelled
    return dataset.get('with_masks', True) and dataset.get('split') not in hidden


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
