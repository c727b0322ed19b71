"""Public sets of images and masks as they are unpacked, by name."""

import os
from pathlib import Path

from vpt_dense.datasets import listing, medical
from vpt_dense.datasets.checks import list_files, pair_files
from vpt_dense.datasets.layouts import has_masks, layout_of
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
        with_masks: False for images to predict; some sets keep the masks of a split to themselves.
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
        with_masks: bool = True,
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
        self.split, self.folders = split, []
        folder = layout.splits[split]
        if data_prefix is None:
            known = has_masks(dict(name=name, split=split, with_masks=with_masks))
            places = [layout.images, *([layout.masks] if known else [])]
            chosen = (part,) if part else layout.parts
            self.folders = [[place.format(split=folder, part=each) for place in places]
                            for each in chosen]
            # What all parts have in common names the results.
            data_prefix = dict(zip(('img_path', 'seg_map_path'), (
                place.format(split=folder, part=part or '').partition('//')[0] for place in places),
                strict=False))
        if label_map is None and layout.ids is not None:
            label_map = {i: layout.ids.get(i, kwargs.get('ignore_index', 255)) for i in range(256)}
        kwargs.setdefault('reduce_zero_label', layout.reduce_zero_label)
        kwargs.setdefault('ignore_negative', layout.ignore_negative)
        img_suffix = img_suffix or layout.img_suffix.format(split=folder)
        super().__init__(
            metainfo, data_prefix, img_suffix, seg_map_suffix or layout.seg_map_suffix,
            label_map=label_map, ann_file=ann_file or self._list(kwargs.get('data_root')), **kwargs)

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
        if layout.prefixes[0] != layout.prefixes[1]:
            return self._renamed(*layout.prefixes)
        if not self.folders:
            return super().list_pairs()
        if self.ann_file:
            raise UserError(
                'dataset.ann_file: the images of this set lie in '
                f'{", ".join(images for images, *_ in self.folders)}; say dataset.data_prefix too')
        found = [
            pair_files(*(os.path.join(self.data_root or '', place) for place in places),
                       *([] if len(places) > 1 else [None]), self.img_suffix, self.seg_map_suffix)
            for places in self.folders]
        return ([pair for pairs, _ in found for pair in pairs],
                [mask for _, extra in found for mask in extra])

    def _renamed(self, image: str, mask: str) -> tuple[list[tuple[str, str | None]], list[str]]:
        """The pairs where names of images and masks begin otherwise: img0001 and label0001."""
        folders = [self.data_prefix['img_path'], self.data_prefix.get('seg_map_path')]
        pairs, extra = pair_files(folders[0], None, self.img_suffix, self.seg_map_suffix,
                                  self.ann_file)
        if folders[1] is None:
            return pairs, extra
        masks = list_files(folders[1], self.seg_map_suffix)
        by_name = {image + stem.removeprefix(mask): path for stem, path in masks.items()}
        files = list_files(folders[0], self.img_suffix)
        names = dict.fromkeys(medical.split(path)[0] for path, _ in pairs)
        stems = {path: stem for stem, path in files.items()}
        found = [pair for path in names
                 for pair in medical.pair_slices(path, by_name.get(stems[path]))]
        left = [] if self.ann_file else [
            path for name, path in by_name.items() if name not in files]
        return found, left

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


