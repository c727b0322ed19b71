"""Data sets of images with maps of several tasks: folders, PASCAL-Context, NYUDv2."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dataset import BaseDataset

from vpt_dense.datasets import task_files
from vpt_dense.datasets.checks import IMAGE_SUFFIXES, pair_files, some
from vpt_dense.errors import UserError, suggest
from vpt_dense.registry import DATASETS


@DATASETS.register_module()
class TaskFolder(BaseDataset):
    """Images in a folder, and maps of the same names in a folder for each task.

    Args:
        maps: Task -> dict of ``path`` (below ``data_root``; several are looked at in turn),
            ``kind`` (:data:`vpt_dense.datasets.task_files.KINDS`), ``suffix`` of the files (by
            default ``.png``), and for classes ``classes``, their names. Further ones: see
            :func:`vpt_dense.datasets.task_files.read`. Without any the images have no maps (to
            predict only).
        tasks: Which of ``maps`` are taken; None: all.
        data_prefix: ``img_path``, by default ``images``.
        img_suffix: What an image's name ends in.
        ann_file: Names of the images to take, one a line, without suffix; without it all.
        metainfo: As in ``mmengine.dataset.BaseDataset``.
        **kwargs: See there.

    Attributes:
        maps: Those that are taken.

    Raises:
        UserError: If a folder is absent or empty, an image lacks a map, or ``maps`` is none.
    """

    METAINFO: dict = {}
    #: ``maps`` where none are given.
    MAPS: Mapping[str, Mapping[str, Any]] = {}
    PREFIX, SUFFIX = 'images', IMAGE_SUFFIXES

    def __init__(
        self, maps: Mapping[str, Mapping[str, Any]] | None = None,
        tasks: Sequence[str] | None = None, data_prefix: dict | None = None,
        img_suffix: str | Sequence[str] | None = None, ann_file: str = '',
        metainfo: dict | None = None, **kwargs,
    ) -> None:
        maps = dict(self.MAPS if maps is None else maps)
        for name in tasks or ():
            if name not in maps:
                raise UserError(f'dataset.tasks: there is no task {name!r}{suggest(name, maps)}; '
                                f'there are {", ".join(maps)}')
        self.maps = {name: dict(how) for name, how in maps.items()
                     if tasks is None or name in tasks}  # fmt: skip
        for name, how in self.maps.items():
            _check(name, how)
        self.img_suffix = self.SUFFIX if img_suffix is None else img_suffix
        classes = {name: list(how['classes']) for name, how in self.maps.items()
                   if how.get('classes')}  # fmt: skip
        super().__init__(
            ann_file=ann_file, metainfo={**(metainfo or {}), 'task_classes': classes},
            data_prefix=dict(data_prefix or {'img_path': self.PREFIX}), **kwargs)

    def list_images(self) -> list[str]:
        """The images, in the order of their names or of the list.

        Raises:
            UserError: If the folder is absent or empty, or the list names one that is not there.
        """
        folder = self.data_prefix['img_path']
        if not os.path.isdir(folder):
            raise UserError(
                f'folder {folder} does not exist (layouts: docs/multi-task-training.md)')
        return [image for image, _ in pair_files(
            folder, None, self.img_suffix, ann_file=self.ann_file or None)[0]]

    def files_of(self, image: str) -> dict[str, str | None]:
        """The files of an image's maps by task; None: it is not there."""
        folder = self.data_prefix['img_path']
        stem = os.path.splitext(os.path.relpath(image, folder))[0]
        found = {}
        for name, how in self.maps.items():
            places = [how['path']] if isinstance(how['path'], str) else how['path']
            paths = [os.path.join(self.data_root or '', place, stem + how.get('suffix', '.png'))
                     for place in places]
            found[name] = next((path for path in paths if os.path.isfile(path)), None)
        return found

    def load_data_list(self) -> list[dict]:
        """Lists the samples, with ``task_files``: task -> (kind, file, arguments)."""
        samples, lacking = [], []
        for image in self.list_images():
            files = self.files_of(image)
            lacking += [f'{image} has no {name}' for name, path in files.items() if path is None]
            samples.append(dict(img_path=image, seg_fields=[], task_files={
                name: (self.maps[name]['kind'], path, _options(self.maps[name]))
                for name, path in files.items()}))
        if lacking:
            raise UserError(f'{len(lacking)} maps are missing below {self.data_root}: '
                            f'{some(lacking)}')
        return samples


def _options(how: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in how.items()
            if key not in ('kind', 'path', 'suffix', 'classes')}


def _check(name: str, how: Mapping[str, Any]) -> None:
    """Refuse settings of a task's maps.

    Raises:
        UserError: Names the key.
    """
    where = f'dataset.maps.{name}'
    if not name.isidentifier():
        raise UserError(f'{where}: take letters, digits and _ for the name of a task')
    kind = how.get('kind')
    if kind not in task_files.KINDS:
        raise UserError(f'{where}.kind must be one of {", ".join(task_files.KINDS)}, found {kind!r}'
                        f'{suggest(str(kind), task_files.KINDS)}')
    if not how.get('path'):
        raise UserError(f'{where}.path: say in which folder the maps are')
    known = {'kind', 'path', 'suffix', *task_files.OPTIONS.get(kind, ())}
    for key in how:
        if key not in known:
            raise UserError(f'{where}: {kind} has no {key!r}{suggest(key, known)}')
    if kind in ('labels', 'saliency', 'context_parts') and not how.get('classes'):
        raise UserError(f"{where}.classes: name the classes in label order: ['no', 'yes']")


VOC = ['background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair',
       'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa',
       'train', 'tvmonitor']
HUMAN_PARTS = ['background', 'head', 'torso', 'upper arms', 'lower arms', 'upper legs',
               'lower legs']
NYU = ['wall', 'floor', 'cabinet', 'bed', 'chair', 'sofa', 'table', 'door', 'window', 'bookshelf',
       'picture', 'counter', 'blinds', 'desk', 'shelves', 'curtain', 'dresser', 'pillow', 'mirror',
       'floor mat', 'clothes', 'ceiling', 'books', 'refridgerator', 'television', 'paper', 'towel',
       'shower curtain', 'box', 'whiteboard', 'person', 'night stand', 'toilet', 'sink', 'lamp',
       'bathtub', 'bag', 'otherstructure', 'otherfurniture', 'otherprop']


@DATASETS.register_module()
class PASCALContext(TaskFolder):
    """PASCAL-Context with five tasks, as ``PASCAL_MT.tgz`` of ASTMT unpacks.

    K.-K. Maninis et al., CVPR 2019, https://arxiv.org/abs/1904.08918; 4,998 and 5,105 images, in
    ``ImageSets/Context/{train,val}.txt``. ``seg`` (21 classes), ``parts`` (7), ``saliency`` and
    ``normals`` (both by networks of others), ``edges``.

    Edges are those between labels, one pixel wide as they are made; ASTMT thins a Laplacian of the
    same labels.

    Args:
        **kwargs: As in :class:`TaskFolder`.
    """

    MAPS = {
        'seg': dict(path=['semseg/VOC12', 'semseg/pascal-context'], kind='labels', classes=VOC),
        'parts': dict(path='human_parts', kind='context_parts', suffix='.mat', classes=HUMAN_PARTS),
        'saliency': dict(path='sal_distill', kind='saliency', classes=['other', 'salient']),
        'normals': dict(path='normals_distill', kind='context_normals'),
        'edges': dict(path='pascal-context/trainval', kind='context_edges', suffix='.mat'),
    }
    PREFIX, SUFFIX = 'JPEGImages', '.jpg'


@DATASETS.register_module()
class NYUDv2(TaskFolder):
    """NYUDv2 with four tasks, as ``NYUD_MT.tgz`` of the multi-task literature unpacks.

    S. Vandenhende et al., https://arxiv.org/abs/2004.13379; 795 and 654 images, in
    ``gt_sets/{train,val}.txt``. ``seg`` (40 classes; 0 of the files is not known), ``depth``
    (metres), ``normals``, ``edges``.

    Args:
        **kwargs: As in :class:`TaskFolder`.
    """

    MAPS = {
        'seg': dict(path='segmentation', kind='labels', zero_is_unknown=True, classes=NYU),
        'depth': dict(path='depth', kind='depth', suffix='.npy'),
        'normals': dict(path='normals', kind='normals', suffix='.npy'),
        'edges': dict(path='edge', kind='edges', suffix='.npy'),
    }
    PREFIX, SUFFIX = 'images', '.jpg'


def check_tasks_of(dataset: Any, name: str, how: dict) -> dict:
    """Check a :class:`TaskFolder`, every file of it; a data set of masks as such.

    Args:
        dataset: Built, without a pipeline.
        name: Of the split.
        how: As in :func:`vpt_dense.datasets.checks.check_classification`.

    Returns:
        As there, with ``maps`` (how many files) and ``known``, the share of known pixels of all
        maps, 0 to 1.
    """
    from vpt_dense.datasets import checks, raster

    if not isinstance(dataset, TaskFolder):
        return checks.check_masks_of(dataset, name, how)
    images = dataset.list_images()
    split = checks.check_classification(
        [(image, None) for image in images], (), name=name, needs_all_classes=False, **how)
    unreadable, problems, lacking, pixels, known, number = {}, split['problems'], [], 0, 0, 0
    outside, seen = [], {task: 0 for task in dataset.maps}
    for image in how['track'](images, description=f'{name}, maps', total=len(images)):
        try:
            info = raster.image_info(image)
        except ValueError:
            continue  # told of the images
        for task, path in dataset.files_of(image).items():
            settings = dataset.maps[task]
            if path is None:
                lacking.append(f'{image} has no {task}')
                continue
            number += 1
            try:
                found = task_files.read(
                    settings['kind'], path, _options(settings), (info.height, info.width))
            except (ValueError, OSError) as error:
                unreadable[path] = str(error)
                continue
            there = (found != task_files.KINDS[settings['kind']])
            there = there.any(2) if found.ndim == 3 else there
            seen[task] += int(there.sum())
            pixels, known = pixels + there.size, known + int(there.sum())
            classes = settings.get('classes')
            if classes and (found[there] >= len(classes)).any():
                outside.append(f'{path} has {int(found[there].max())} of {len(classes)} classes')
    if lacking:
        problems.append(f'{len(lacking)} maps are missing: {some(lacking)}')
    if unreadable:
        problems.append(f'{len(unreadable)} maps cannot be read, or are of another size: '
                        f'{some(unreadable.values())}')
    if outside:
        problems.append(f'{len(outside)} maps have labels of no class: {some(outside)}')
    problems += [f'of {task} nothing is known in any image' for task, count in seen.items()
                 if number and not count and not unreadable]
    split['unreadable'] |= unreadable
    split.update(maps=number, known=known / pixels if pixels else None)
    return split
