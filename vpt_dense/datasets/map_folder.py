"""Data sets made of a folder of images and one of maps: depth, normals. And how they are read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform, to_tensor
from mmengine.dataset import BaseDataset
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PackSegInputs

from vpt_dense.datasets import map_files
from vpt_dense.datasets.checks import IMAGE_SUFFIXES
from vpt_dense.errors import UserError
from vpt_dense.registry import DATASETS, TRANSFORMS
from vpt_dense.tree import kind_of

#: Transforms that fill borders of maps -> the argument that says with what.
_FILLS = {'RandomRotate': 'seg_pad_val', 'RandomCutOut': 'seg_fill_in', 'Pad': 'pad_val',
          'RandomMosaic': 'seg_pad_val'}
#: Transforms that turn or shear an image otherwise than by mirroring it.
_TURNS = ('RandomRotate', 'RandomRotFlip', 'RandomAffine', 'Albu', 'Rotate', 'ShearX', 'ShearY',
          'GeomTransform', 'BioMedical3DRandomFlip', 'RandomMosaic')


class MapFolder(BaseDataset):
    """Images and maps of the same name in two folders.

    Args:
        metainfo: Must not name classes.
        data_prefix: ``img_path`` and :attr:`KEY`, relative to ``data_root``; by default ``images``
            and ``annotations``. Without the second the images have no maps (to predict only).
        img_suffix: What an image's name ends in.
        map_suffix: What a map's name ends in; the rest must equal the image's name.
        ann_file: See :func:`vpt_dense.datasets.map_files.list_pairs`.
        pipeline: As in ``mmengine.dataset.BaseDataset``.
        **kwargs: See there.

    Raises:
        UserError: If a folder is absent or empty, an image has no map, there are classes, or the
            pipeline would make maps wrong.
    """

    METAINFO: dict = {}
    #: The key of a sample, and of ``data_prefix``, that says where the map is.
    KEY = ''

    def __init__(
        self, metainfo: dict | None = None, data_prefix: dict | None = None,
        img_suffix: str | Sequence[str] = IMAGE_SUFFIXES,
        map_suffix: str | Sequence[str] = map_files.MAP_SUFFIXES, ann_file: str = '',
        pipeline: Sequence[Any] = (), **kwargs,
    ) -> None:
        if (metainfo or {}).get('classes'):
            raise UserError(f'dataset.classes: a {type(self).__name__} has none; leave it out')
        self.img_suffix, self.map_suffix = img_suffix, map_suffix
        self.check_pipeline([step for step in pipeline if isinstance(step, dict)])
        if data_prefix is None:
            data_prefix = {'img_path': 'images', self.KEY: 'annotations'}
        super().__init__(ann_file=ann_file, metainfo=metainfo, data_prefix=dict(data_prefix),
                         pipeline=list(pipeline), **kwargs)

    def check_pipeline(self, steps: Sequence[dict]) -> None:
        """Refuse transforms after which a map would be wrong.

        Raises:
            UserError: Names it.
        """

    def list_pairs(self) -> tuple[list[tuple[str, str | None]], list[str]]:
        """Lists [(image, its map or None)] and the maps without an image."""
        return map_files.list_pairs(
            self.data_prefix['img_path'], self.data_prefix.get(self.KEY), self.img_suffix,
            self.map_suffix, self.ann_file)

    def load_data_list(self) -> list[dict]:
        """Lists the samples in the form of mmseg's transforms."""
        pairs, _ = self.list_pairs()
        if self.data_prefix.get(self.KEY) is None:
            return [dict(img_path=image, seg_fields=[]) for image, _ in pairs]
        map_files.need_maps(pairs, self.data_prefix[self.KEY])
        return [{'img_path': image, self.KEY: map_, 'seg_fields': [], **self.common()}
                for image, map_ in pairs]

    def common(self) -> dict[str, Any]:
        """What all samples have."""
        return {}


@DATASETS.register_module()
class DepthFolder(MapFolder):
    """Images and depth maps; NYU's and KITTI's folders too (docs/depth.md).

    Args:
        depth_scale: How many units of the depth files are a metre: 1000 for millimetres (NYU), 256
            for KITTI, 1 for metres.
        **kwargs: As in :class:`MapFolder`.
    """

    KEY = map_files.KEYS['DepthFolder']

    def __init__(self, depth_scale: float | None = None, **kwargs) -> None:
        self.depth_scale = map_files.check_scale(depth_scale)
        super().__init__(**kwargs)

    def check_pipeline(self, steps: Sequence[dict]) -> None:
        """See :meth:`MapFolder.check_pipeline`."""
        for step in steps:
            kind = kind_of(step)
            found = step.get(_FILLS[kind], 255) if kind in _FILLS else 0
            found = found.get('seg', 255) if isinstance(found, dict) else found
            if found != 0:
                raise UserError(
                    f'{kind} of the pipeline gives borders a depth of {found} m; set '
                    f'{_FILLS[kind]}=0, which is no depth')

    def common(self) -> dict[str, Any]:
        """See :meth:`MapFolder.common`."""
        return dict(depth_scale=self.depth_scale)


@DATASETS.register_module()
class NormalFolder(MapFolder):
    """Images and maps of normals, see :func:`vpt_dense.datasets.map_files.read_normals`.

    Mirrored images have mirrored normals (:class:`PackNormals`); transforms that turn images
    otherwise are refused.

    Args:
        **kwargs: As in :class:`MapFolder`.
    """

    KEY = map_files.KEYS['NormalFolder']

    def check_pipeline(self, steps: Sequence[dict]) -> None:
        """See :meth:`MapFolder.check_pipeline`."""
        kinds = [kind_of(step) for step in steps]
        for kind in kinds:
            if kind in _TURNS:
                raise UserError(f'{kind} of the pipeline turns images but not their normals; '
                                'leave it out')
        if kinds.count('RandomFlip') > 1:
            raise UserError('the pipeline has two RandomFlips, of which normals follow one; give '
                            'one both directions')
        packs = [kind for kind in kinds if kind.startswith('Pack')]
        if packs and packs != ['PackNormals']:
            raise UserError(f'the pipeline packs by {packs[0]}; normals need vpt_dense.PackNormals')


# --- transforms ------------------------------------------------------------------------------


class _LoadMap(BaseTransform):
    """Reads the map of an image; an image without one passes as it is."""

    KEY, FIELD = '', ''

    def read(self, results: dict) -> np.ndarray:
        """The map of a sample."""
        raise NotImplementedError

    def transform(self, results: dict) -> dict:
        """Add the map, and its name to ``seg_fields``.

        Raises:
            ValueError: If it cannot be read or has another size than the image.
        """
        path = results.get(self.KEY)
        if path is None:
            return results
        found = self.read(results)
        shape = tuple(results.get('ori_shape', found.shape))[:2]
        if found.shape[:2] != shape:
            raise ValueError(
                f'{path} is {found.shape[1]}x{found.shape[0]}, its image {shape[1]}x{shape[0]}')
        results[self.FIELD] = found
        results['seg_fields'].append(self.FIELD)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


@TRANSFORMS.register_module()
class LoadDepth(_LoadMap):
    """Loads ``depth_map_path`` in units of ``depth_scale`` as ``gt_depth_map``, (H, W) metres.

    0 stands for no depth. mmseg's ``LoadDepthAnnotation`` takes depths below 0, NaN and colours for
    depth, and maps of another size than their image. Transforms behind it resize and crop the map
    and leave metres as they are, also where an image is enlarged: what is seen larger counts as it
    was measured.
    """

    KEY, FIELD = 'depth_map_path', 'gt_depth_map'

    def read(self, results: dict) -> np.ndarray:
        """See :func:`vpt_dense.datasets.map_files.read_depth`."""
        return map_files.read_depth(results[self.KEY], map_files.check_scale(
            results.get('depth_scale')))


@TRANSFORMS.register_module()
class LoadNormals(_LoadMap):
    """Loads ``normal_map_path`` as ``gt_normal_map``, (H, W, 3), zeros for none."""

    KEY, FIELD = 'normal_map_path', 'gt_normal_map'

    def read(self, results: dict) -> np.ndarray:
        """See :func:`vpt_dense.datasets.map_files.read_normals`."""
        return map_files.read_normals(results[self.KEY])


@TRANSFORMS.register_module()
class PackNormals(PackSegInputs):
    """mmseg's ``PackSegInputs``, which also packs ``gt_normal_map`` (3, H, W).

    Of an image that is mirrored from left to right x is negated, from top to bottom y.

    Args:
        *args: As in ``mmseg.datasets.PackSegInputs``.
        **kwargs: As there.
    """

    def transform(self, results: dict) -> dict:
        """Pack a sample."""
        packed = super().transform(results)
        normals = results.get('gt_normal_map')
        if normals is not None:
            if results.get('flip'):
                signs = {'horizontal': (-1, 1, 1), 'vertical': (1, -1, 1), 'diagonal': (-1, -1, 1)}
                normals = normals * np.float32(signs[results['flip_direction']])
            data = to_tensor(np.ascontiguousarray(normals.transpose(2, 0, 1)))
            packed['data_samples'].set_data(dict(gt_normal_map=PixelData(data=data)))
        return packed


@TRANSFORMS.register_module()
class KITTICrop(BaseTransform):
    """The part of a KITTI image that its benchmark of depth has: 352 x 1216 at the bottom.

    J. Uhrig et al., 3DV 2017, https://arxiv.org/abs/1708.06500. Maps are cut alike, and what is
    cut counts as the whole image: it stands behind what loads them, in tests too.
    """

    HEIGHT, WIDTH = 352, 1216

    def transform(self, results: dict) -> dict:
        """Cut ``img`` and everything in ``seg_fields``.

        Raises:
            ValueError: If the image is smaller.
        """
        height, width = results['img'].shape[:2]
        if height < self.HEIGHT or width < self.WIDTH:
            raise ValueError(f'{results.get("img_path")} is {width}x{height}, smaller than '
                             f'{self.WIDTH}x{self.HEIGHT}, which KITTICrop takes')
        top, left = height - self.HEIGHT, (width - self.WIDTH) // 2
        for key in ('img', *results.get('seg_fields', ())):
            results[key] = results[key][top:, left:left + self.WIDTH]
        results['img_shape'] = results['ori_shape'] = (self.HEIGHT, self.WIDTH)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
