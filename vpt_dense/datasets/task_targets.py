"""How the maps of several tasks are read, made of labels, and packed."""

from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, to_tensor
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PackSegInputs

from vpt_dense.argument_checks import check_flag, check_number
from vpt_dense.datasets import task_files
from vpt_dense.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadTasks(BaseTransform):
    """Loads a sample's maps of all tasks, of :class:`vpt_dense.datasets.task_folder.TaskFolder`.

    ``gt_NAME_map`` and its name in ``seg_fields``: (H, W), of normals (H, W, 3). What is read and
    what stands for unknown: :data:`vpt_dense.datasets.task_files.KINDS`.
    """

    def transform(self, results: dict) -> dict:
        """Load what ``task_files`` names.

        Raises:
            ValueError: If a map cannot be read or has another size than the image; the message
                names the file.
        """
        shape = tuple(results['ori_shape'])[:2] if 'ori_shape' in results else None
        for name, (kind, path, how) in results.get('task_files', {}).items():
            found = task_files.read(kind, path, how, shape)
            results[f'gt_{name}_map'] = found
            results['seg_fields'].append(f'gt_{name}_map')
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


@TRANSFORMS.register_module()
class LabelTargets(BaseTransform):
    """Makes edges of classes, and distances to them, of labels, where it stands in the pipeline.

    An edge is a pixel whose right or lower neighbour has another label, both known: one pixel wide.
    A distance is Euclidean, in pixels, to the nearest edge, at most ``max_distance`` (which an
    image without edges has everywhere); -1 where the label is not known.

    Args:
        labels: The task whose ``gt_NAME_map`` holds the labels; ``seg`` is what
            :class:`vpt_dense.datasets.loading.LoadMask` reads.
        edges: What the task of edges is called; None: none is made.
        distance: What that of distances is called; None: none is made.
        max_distance: In pixels of the image as it is here.
        ignore_index: The label that is not known.
        as_original: Whether the image as it is here counts as the original, at whose size
            predictions are compared: of a distance in pixels, what is resized is another one.

    Raises:
        ValueError: If nothing is made.
    """

    def __init__(
        self, labels: str = 'seg', edges: str | None = 'edges', distance: str | None = 'distance',
        max_distance: float = 20.0, ignore_index: int = 255, as_original: bool = False,
    ) -> None:  # fmt: skip
        if edges is None and distance is None:
            raise ValueError('LabelTargets: both edges and distance are None; nothing is made')
        self.labels, self.edges, self.distance = labels, edges, distance
        self.max_distance = check_number(
            max_distance, 'LabelTargets.max_distance', positive=True)
        self.ignore_index = ignore_index
        self.as_original = check_flag(as_original, 'LabelTargets.as_original')

    def transform(self, results: dict) -> dict:
        """Add the maps and their names to ``seg_fields``.

        Raises:
            ValueError: If there are no labels; to predict, leave it out.
        """
        labels = results.get(f'gt_{self.labels}_map')
        if labels is None:
            if 'seg_map_path' not in results and 'task_files' not in results:
                return results  # an image without labels, to predict
            raise ValueError(f'LabelTargets: there is no gt_{self.labels}_map; load it before')
        edges = edges_of(labels, self.ignore_index)
        made = {}
        if self.edges is not None:
            made[self.edges] = edges
        if self.distance is not None:
            far = cv2.distanceTransform((edges != 1).astype(np.uint8), cv2.DIST_L2,
                                        cv2.DIST_MASK_PRECISE)
            far = np.minimum(far, np.float32(self.max_distance))
            made[self.distance] = np.where(edges == 255, np.float32(-1), far)
        for name, found in made.items():
            results[f'gt_{name}_map'] = found
            results['seg_fields'].append(f'gt_{name}_map')
        if self.as_original:
            results['ori_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(edges={self.edges}, distance={self.distance})'


def edges_of(labels: np.ndarray, ignore_index: int | None = 255) -> np.ndarray:
    """Edges of labels (H, W), see :class:`LabelTargets`: uint8, 0, 1, or 255 where not known."""
    known = np.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
    edges = np.zeros(labels.shape, np.uint8)
    edges[:, :-1] |= (labels[:, 1:] != labels[:, :-1]) & known[:, 1:] & known[:, :-1]
    edges[:-1] |= (labels[1:] != labels[:-1]) & known[1:] & known[:-1]
    edges[~known] = 255
    return edges


@TRANSFORMS.register_module()
class PackTasks(PackSegInputs):
    """mmseg's ``PackSegInputs``, but with every map in ``seg_fields`` as ``gt_NAME_map``.

    Maps become (channels, H, W), integers int64, others float32. Of normals (three channels) of an
    image that is mirrored from left to right x is negated, from top to bottom y.

    Args:
        *args: As in ``mmseg.datasets.PackSegInputs``.
        **kwargs: As there.
    """

    def transform(self, results: dict) -> dict:
        """Pack a sample."""
        names = results.get('seg_fields', [])
        packed = super().transform(
            {key: value for key, value in results.items() if key not in names})
        for name in names:
            packed['data_samples'].set_data({name: PixelData(data=_pack(results[name], results))})
        return packed


def _pack(array: np.ndarray, results: dict) -> Any:
    if array.ndim == 3:
        if results.get('flip'):
            signs = {'horizontal': (-1, 1, 1), 'vertical': (1, -1, 1), 'diagonal': (-1, -1, 1)}
            array = array * np.float32(signs[results['flip_direction']])
        array = array.transpose(2, 0, 1)
    else:
        array = array[None]
    kind = np.float32 if array.dtype.kind == 'f' else np.int64
    return to_tensor(np.ascontiguousarray(array.astype(kind)))
