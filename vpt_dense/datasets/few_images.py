"""Few images of a training set, drawn by a seed: so many of each class, or a share."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vpt_dense.datasets import checks, list_files
from vpt_dense.errors import UserError
from vpt_dense.tree import kind_of, leaf_datasets

#: Classification sets that take a list (``ann_file``) of any images of theirs.
_TAKE_LISTS = ('ImageFolder', 'CustomDataset', 'ImageNet', *list_files.KINDS)


class Training:
    """The training images of a config, of which some are drawn.

    Attributes:
        classes: Their names.
        labels: Of each image; of images with masks each 0.
        names: Of the images, relative to their folder, with ``/``.

    Args:
        cfg: A resolved config.

    Raises:
        UserError: If it has no training set or several, a part of one, or one that takes no list.
    """

    def __init__(self, cfg: Any) -> None:
        from mmengine.registry import DATASETS, init_default_scope

        node = (cfg.get('train_dataloader') or {}).get('dataset')
        while isinstance(node, dict):
            if kind_of(node).endswith('Subset'):
                raise UserError(
                    'train_dataloader.dataset: lists are of all training images, and this config '
                    'takes some of them; leave subset and class_split out')
            node = node.get('dataset')
        parts = leaf_datasets(cfg.get('train_dataloader'))
        if len(parts) != 1:
            raise UserError(f'train_dataloader: one data set was expected, found {len(parts)}')
        kind = kind_of(parts[0])
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        with DATASETS.switch_scope_and_registry(None) as registry:
            found = registry.get(parts[0]['type'])
            self._masks = found is not None and hasattr(found, 'get_label_map')
            if kind != 'SegFolder' and not self._masks and kind not in _TAKE_LISTS:
                raise UserError(
                    f'train_dataloader.dataset: a {kind} takes no list of images; '
                    'subset.per_class and subset.share of a config draw some of them')
            dataset = registry.build(dict(parts[0], pipeline=[]))
        dataset.full_init()
        self._masks = self._masks or kind == 'SegFolder'
        self.classes = list(dataset.metainfo['classes'])
        data = [dataset.get_data_info(i) for i in range(len(dataset))]
        self._paths = [each['img_path'] for each in data]
        if self._masks:
            folder, self._present = dataset.data_prefix['img_path'], None
            self._seg_maps = [each.get('seg_map_path') for each in data]
            self._table = checks.label_table(dataset.reduce_zero_label, dataset.label_map)
            self.labels = [0] * len(data)
        else:
            folder = dataset.img_prefix or dataset.data_root or ''
            self.labels = [int(each['gt_label']) for each in data]
        names = [os.path.relpath(path, folder).replace(os.sep, '/') for path in self._paths]
        if len(set(names)) < len(names):
            raise UserError(
                f'train_dataloader.dataset: {names[0]} and others hold several images each, which '
                'a list takes as a whole; subset of a config draws some of them')
        self.names = names
        if self._masks:
            self._lines = [os.path.splitext(name)[0] for name in names]
        elif kind == 'ImageFolder':
            self._lines = names
        else:
            pairs = zip(names, self.labels, strict=True)
            self._lines = [f'{name} {label}' for name, label in pairs]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._lines)

    @property
    def dense(self) -> bool:
        """Whether the images have masks."""
        return self._masks

    @property
    def usage(self) -> str:
        """What a config or a command line says to take a list."""
        return 'train_dataloader.dataset.ann_file=THE WHOLE PATH OF A LIST'

    def text(self, chosen: Sequence[int]) -> str:
        """A list of some images."""
        return ''.join(f'{self._lines[i]}\n' for i in chosen)

    def draw(self, kind: str, value: float, seed: int) -> tuple[list[int], str]:
        """Draw some images.

        Args:
            kind: ``per_class``, ``share`` or ``holding``.
            value: How many, or what part.
            seed: Of the draw.

        Returns:
            Their indices, ascending; and what is to be told of them, often nothing.

        Raises:
            UserError: If there are too few, or the images are not of that kind.
        """
        if kind == 'share':
            return share(self.labels, value, seed), ''
        if (kind == 'holding') != self._masks:
            raise UserError(
                '--per-class is for classification; --holding N takes images of which at least N '
                'hold each class' if self._masks else
                '--holding is for segmentation; --per-class N takes N images of each class')
        if kind == 'per_class':
            return per_class(self.labels, self.classes, int(value), seed), ''
        if self._present is None:
            self._present = [
                np.unique(self._table[checks.read_mask(path)]).tolist() for path in self._seg_maps]
        chosen, fewer = holding(self._present, self.classes, int(value), seed)
        told = ', '.join(f'{name} ({count})' for name, count in fewer.items())
        return chosen, f'; fewer than {value:g} hold {told}' if fewer else ''


def per_class(labels: Sequence[int], classes: Sequence[str], number: int, seed: int) -> list[int]:
    """So many images of each class.

    Args:
        labels: Of each image.
        classes: Their names.
        number: Of images a class.
        seed: Of the order of the images; the first ones of each class are taken, so that fewer
            images are a part of more of them.

    Returns:
        Indices of the images, ascending.

    Raises:
        UserError: If a class has fewer.
    """
    chosen: list[int] = []
    for own in _by_class(labels, seed).values():
        chosen += own[:number]
    counts = np.bincount(np.asarray(labels, int), minlength=len(classes))
    if counts.min() < number:
        least = int(counts.argmin())
        raise UserError(
            f'--per-class {number}: class {classes[least]} has {counts[least]} images')
    return sorted(chosen)


def share(labels: Sequence[int], part: float, seed: int) -> list[int]:
    """A share of the images, the same of every class and at least one of each.

    Args:
        labels: Of each image; of images without a class each 0.
        part: Above 0 and at most 1.
        seed: As :func:`per_class`.

    Returns:
        Indices of the images, ascending. They are at most half an image a class off the share.
    """
    return sorted(i for own in _by_class(labels, seed).values()
                  for i in own[: max(1, math.floor(part * len(own) + 0.5))])


def _by_class(labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for i in np.random.default_rng(seed).permutation(len(labels)):
        found.setdefault(int(labels[i]), []).append(int(i))
    return found


def holding(
    present: Sequence[Mapping[int, int] | Sequence[int]], classes: Sequence[str], number: int,
    seed: int,
) -> tuple[list[int], dict[str, int]]:  # fmt: skip
    """Images of which at least so many hold each class: few shots of segmentation.

    Goes through the images in the order of the seed, and takes one that holds a class which too few
    of those taken before hold.

    Args:
        present: The labels in each mask.
        classes: The names of labels 0, 1, ...; other labels do not count.
        number: Of images that hold each class.
        seed: Of the order.

    Returns:
        Indices of the images, ascending; and, by name, how many images hold those classes that
        fewer images hold, all of which are taken.
    """
    counts = dict.fromkeys(range(len(classes)), 0)
    chosen = []
    for i in np.random.default_rng(seed).permutation(len(present)):
        own = [label for label in present[i] if label in counts]
        if any(counts[label] < number for label in own):
            chosen.append(int(i))
            for label in own:
                counts[label] += 1
    return sorted(chosen), {classes[label]: count for label, count in counts.items()
                            if count < number}
