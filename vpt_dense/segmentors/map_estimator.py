"""Models that predict maps of numbers: depth, normals of surfaces."""

from typing import Any

from mmengine.model import BaseTTAModel
from mmengine.structures import PixelData
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from vpt_dense.heads.maps import MapHead
from vpt_dense.registry import MODELS
from vpt_dense.segmentors.encoder_decoder import EncoderDecoder


class MapEstimator(EncoderDecoder):
    """A segmentor whose head gives a map of numbers, under a key of its own.

    mmseg's ``DepthEstimator`` is an ``EncoderDecoder`` too, with a ``decode_head``, by which it
    cannot be told from a segmentor; and ``mode='slide'`` is not served there. Here windows are
    averaged, mirrored images turned back and maps resized as those of a segmentor are: see
    :class:`vpt_dense.segmentors.encoder_decoder.EncoderDecoder`.

    A backbone with ``out_type='raw'`` gives pairs of a map and the class token to the head.

    Args:
        backbone: Config of the backbone.
        data_preprocessor: Its ``seg_pad_val`` is 0: what is added at a border has no truth.
        **kwargs: As there; the head under :attr:`HEAD`.

    Raises:
        ValueError: If the head is none of these maps, borders would count as truth, or a backbone
            puts out vectors; or all tokens without a class token, or with a prompt around the
            image.
    """

    #: The key of the head, and of what is predicted.
    HEAD, FOUND = '', ''

    def __init__(self, *, backbone: dict, data_preprocessor: Any = None, **kwargs: Any) -> None:
        if isinstance(data_preprocessor, dict):
            border = data_preprocessor.get('seg_pad_val', 255)
            if border != 0:
                raise ValueError(
                    f'model.data_preprocessor.seg_pad_val is {border}, which borders would have as '
                    'their truth; set it to 0')
        head = kwargs.pop(self.HEAD, None)
        if head is None:
            raise ValueError(f'a {type(self).__name__} needs model.{self.HEAD}')
        super().__init__(
            backbone=backbone, decode_head=head, data_preprocessor=data_preprocessor, **kwargs)
        out_type = getattr(self.backbone, 'out_type', 'featmap')
        if out_type not in ('featmap', 'raw'):
            raise ValueError(
                f'model.backbone.out_type is {out_type!r}, one vector an image; a '
                f"{type(self).__name__} needs 'featmap'")
        if out_type == 'raw':
            if not self.backbone.with_cls_token:
                raise ValueError("model.backbone.out_type='raw': it has no class token; set "
                                 "'featmap'")
            if self.backbone.image_prompt is not None and self.backbone.image_prompt.border:
                raise ValueError("model.backbone.image_prompt puts a border around images, which "
                                 "out_type='raw' does not take off; set 'featmap'")

    def _init_decode_head(self, decode_head: dict) -> None:
        """Build the head where it is looked for: among the children under its own key."""
        head = MMSEG_MODELS.build(decode_head)
        if not isinstance(head, MapHead) or not self.FOUND.endswith(head.truth[3:]):
            raise ValueError(
                f'model.{self.HEAD}: a {type(head).__name__} does not fit a {type(self).__name__}')
        setattr(self, self.HEAD, head)
        self.align_corners = head.align_corners
        self.num_classes, self.out_channels = None, head.out_channels

    @property
    def decode_head(self) -> MapHead:
        """What mmseg calls the head."""
        return getattr(self, self.HEAD)

    def extract_feat(self, inputs: Tensor) -> tuple:
        """Maps (B, C, h, w) of the blocks; with ``out_type='raw'`` pairs with (B, C), see above."""
        outs = super().extract_feat(inputs)
        if getattr(self.backbone, 'out_type', None) != 'raw':
            return outs
        strides = self.backbone.patch_layers()[0].stride
        grid = [-(-side // step) for side, step in zip(inputs.shape[2:], strides, strict=True)]
        number = grid[0] * grid[1]
        return tuple(
            (x[:, x.shape[1] - number:].unflatten(1, grid).permute(0, 3, 1, 2), x[:, 0])
            for x in outs)

    def postprocess_result(self, seg_logits: Tensor, data_samples: list | None = None) -> list:
        """Put maps into data samples, at the images' original size.

        Args:
            seg_logits: (B, channels, H, W).
            data_samples: Of the images; without them nothing is resized.

        Returns:
            Data samples with the map (channels, height, width) under :attr:`FOUND`.
        """
        whole = data_samples is None
        data_samples = [SegDataSample() for _ in seg_logits] if whole else data_samples
        for found, sample in zip(seg_logits, data_samples, strict=True):
            found = found if whole else self.restore(found, sample.metainfo)
            sample.set_data({self.FOUND: PixelData(data=self.decode_head.finish(found))})
        return data_samples


@MODELS.register_module()
class DepthEstimator(MapEstimator):
    """Depth in metres: ``pred_depth_map`` (1, height, width).

    Args:
        **kwargs: As in :class:`MapEstimator`, with ``depth_head``.
    """

    HEAD, FOUND = 'depth_head', 'pred_depth_map'


@MODELS.register_module()
class NormalEstimator(MapEstimator):
    """Normals of surfaces: ``pred_normal_map`` (3, height, width), unit vectors.

    Args:
        **kwargs: As in :class:`MapEstimator`, with ``normal_head``.
    """

    HEAD, FOUND = 'normal_head', 'pred_normal_map'

    def undo(self, logits: Tensor, img_meta: dict) -> Tensor:
        """As of a segmentor, but the normals of a mirrored image are mirrored too."""
        return mirror_normals(super().undo(logits, img_meta), img_meta)


def mirror_normals(found: Tensor, img_meta: dict) -> Tensor:
    """Normals (3, H, W) of a mirrored image, whose places were turned back, as of the image."""
    if img_meta.get('flip'):
        axis = {'horizontal': 0, 'vertical': 1}[img_meta['flip_direction']]
        found = found.clone()
        found[axis] *= -1
    return found


@MODELS.register_module()
class MapTTAModel(BaseTTAModel):
    """Test-time augmentation of maps of numbers: the mean of all versions of an image.

    Args:
        **kwargs: As in :class:`mmengine.model.BaseTTAModel`.
    """

    def merge_preds(self, data_samples_list: list[list]) -> list:
        """Merge the predictions of all versions of each image into the sample of the first."""
        key, head = self.module.FOUND, self.module.decode_head
        for versions in data_samples_list:
            mean = sum(sample.get(key).data for sample in versions) / len(versions)
            versions[0].set_data({key: PixelData(data=head.finish(mean))})
        return [versions[0] for versions in data_samples_list]
