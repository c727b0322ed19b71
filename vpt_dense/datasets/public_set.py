"""Public sets of images and masks as they are unpacked, by name."""

from pathlib import Path

from vpt_dense.datasets import listing
from vpt_dense.datasets.checks import pair_files
from vpt_dense.datasets.layouts import layout_of
from vpt_dense.datasets.seg_folder import SegFolder
from vpt_dense.errors import UserError
from vpt_dense.registry import DATASETS


@DATASETS.register_module()
class PublicSet(SegFolder):
    """A public set by its name; folders, suffixes, classes and label ids are known.

    The masks are read as their authors give them: ids that are no class are ignored, and what a
    test writes has these ids again.

    Args:
        name: One of :data:`vpt_dense.datasets.layouts.LAYOUTS`: ``cityscapes``, ``gtav``, ...
        split: ``train``, ``val`` or ``test``, as the set has them; ``all`` where it has no splits.
        part: One of the parts that some sets have, e.g. ``night`` of ``acdc``. None: all.
        metainfo: As in :class:`vpt_dense.datasets.seg_folder.SegFolder`; ``classes``, if said, must
            be the set's.
        data_prefix: As there. None: as the set is unpacked.
        img_suffix: As there. None: the set's.
        seg_map_suffix: As there. None: the set's.
        label_map: As there. None: the set's.
        ann_file: As there: some of the images of the split. Left out: the split's list, if the set
            has lists, or all.
        **kwargs: As there.

    Raises:
        UserError: The set, its split or part is not known, other classes are said, or a list or
            folder is absent; and as in :class:`vpt_dense.datasets.seg_folder.SegFolder`.
    """

    def __init__(
        self,
        name: str,
        split: str = 'train',
        part: str | None = None,
        metainfo: dict | None = None,
        data_prefix: dict | None = None,
        img_suffix: str | None = None,
        seg_map_suffix: str | None = None,
        label_map: dict[int, int] | None = None,
        ann_file: str = '',
        **kwargs,
    ) -> None:
        self.layout = layout = layout_of(name)
        if split not in layout.splits:
            raise UserError(
                f'dataset.split: {name} has {", ".join(layout.splits)}, found {split!r}')
        if part is not None and part not in layout.parts:
            has = f'the parts {", ".join(layout.parts)}' if layout.parts else 'no parts'
            raise UserError(f'dataset.part: {name} has {has}, found {part!r}')
        metainfo = dict(metainfo or {})
        classes = metainfo.setdefault('classes', layout.classes)
        if tuple(classes) != layout.classes:
            raise UserError(
                f'dataset.classes are {list(classes)}, but {name} has {list(layout.classes)}: a '
                'label would mean another class; leave them out, or describe the folder as a '
                'vpt_dense.SegFolder with a label_map')
        if layout.palette:
            metainfo.setdefault('palette', [list(colour) for colour in layout.palette])
        self.split, self.parts = split, ()
        if data_prefix is None:
            folder = layout.splits[split]
            data_prefix = {key: place.format(split=folder) for key, place in
                           dict(img_path=layout.images, seg_map_path=layout.masks).items()}
            self.parts = tuple(f'{each}/{folder}' for each in ((part,) if part else layout.parts))
        if label_map is None and layout.ids is not None:
            label_map = {i: layout.ids.get(i, kwargs.get('ignore_index', 255)) for i in range(256)}
        kwargs.setdefault('reduce_zero_label', layout.reduce_zero_label)
        kwargs.setdefault('ignore_negative', layout.ignore_negative)
        super().__init__(
            metainfo, data_prefix, img_suffix or layout.img_suffix,
            seg_map_suffix or layout.seg_map_suffix, label_map=label_map,
            ann_file=ann_file or self._list(kwargs.get('data_root')), **kwargs)

    def _list(self, root: str | None) -> str:
        """The split's list of names, below the data folder; '' if the set has none."""
        lists = self.layout.lists.get(self.split, ())
        if not lists:
            return ''
        found = [name for name in lists if Path(root or '', name).is_file()]
        if not found:
            raise UserError(
                f'dataset.data_root {root}: no list {" or ".join(lists)}, which says what the '
                f'split {self.split!r} is')
        return found[0]

    def list_pairs(self) -> tuple[list[tuple[str, str | None]], list[str]]:
        """Lists [(image, its mask or None)] and the masks without an image."""
        layout, listed = self.layout, self.layout.lists.get(self.split, ())
        if any(self.ann_file.endswith(name) for name in listed):
            return self._listed(layout.listed_suffix), []
        if not self.parts:
            return super().list_pairs()
        images, masks = (self.data_prefix.get(key) for key in ('img_path', 'seg_map_path'))
        if self.ann_file:
            raise UserError(
                f'dataset.ann_file: the images of this set lie in {", ".join(self.parts)}; say '
                'dataset.data_prefix too')
        found = [
            pair_files(f'{images}/{each}', masks and f'{masks}/{each}', self.img_suffix,
                       self.seg_map_suffix) for each in self.parts]
        return ([pair for pairs, _ in found for pair in pairs],
                [mask for _, extra in found for mask in extra])

    def _listed(self, suffix: str) -> list[tuple[str, str | None]]:
        """The pairs that the split's list names: a line's first name, without its suffix."""
        names = [line.split(',')[0].strip() for line in listing.read_names(self.ann_file)]
        names = [name.removesuffix(suffix) for name in names]
        pairs, _ = pair_files(self.data_prefix['img_path'], self.data_prefix.get('seg_map_path'),
                              self.img_suffix, self.seg_map_suffix)
        by_name = {Path(image).name.removesuffix(self.img_suffix): (image, mask)
                   for image, mask in pairs}
        lacking = [name for name in names if name not in by_name]
        if lacking:
            raise UserError(
                f'{self.ann_file}: {len(lacking)} of {len(names)} names are no image in '
                f'{self.data_prefix["img_path"]}, e.g. {lacking[0]}')
        return [by_name[name] for name in names]


