"""What heads of maps of numbers have in common: depth, normals. Classes they do not know."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmseg.models import decode_heads
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_flag
from vpt_dense.heads.linear import normalise_tokens

#: A map of a block, (B, C, h, w), or a pair of it and the class token, (B, C).
Features = Tensor | tuple[Tensor, Tensor]


class MapHead(BaseDecodeHead):
    """A head whose channels become a map of numbers, and whose losses compare it with another.

    In front of it among the parents stands a class that says what the map is:
    :class:`vpt_dense.heads.depth.Depth` or :class:`vpt_dense.heads.normals.Normals`.

    Args:
        number: Channels that :meth:`scores` gives and :meth:`to_map` takes.
        map_channels: Of the map.
        **kwargs: As in :class:`mmseg.models.decode_heads.decode_head.BaseDecodeHead`, without
            ``num_classes``, ``out_channels`` and ``threshold``.
    """

    #: The key of data samples with the true map; what it holds where nothing is known; and whether
    #: its loss is that of classes.
    truth, void, classifies = '', 0, False

    def __init__(self, *, number: int, map_channels: int, **kwargs) -> None:
        super().__init__(num_classes=number, threshold=0.0, **kwargs)
        # They size the last layer there; classes and a threshold of theirs there are none.
        self.num_classes, self.out_channels, self.threshold = None, map_channels, None

    def scores(self, inputs: Sequence[Features]) -> Tensor:
        """What the map is made of: (B, number, h, w)."""
        raise NotImplementedError

    def to_map(self, scores: Tensor) -> Tensor:
        """The map (B, map_channels, h, w), float32."""
        raise NotImplementedError

    def valid(self, truth: Tensor) -> Tensor:
        """Where a true map (B, map_channels, H, W) says something: (B, 1, H, W) bool."""
        raise NotImplementedError

    def forward(self, inputs: Sequence[Features]) -> Tensor:
        """The map (B, map_channels, h, w) of the features of the backbone."""
        return self.to_map(self.scores(inputs))

    def finish(self, found: Tensor) -> Tensor:
        """A map that was resized or averaged as :meth:`to_map` would give it."""
        return found

    def answer(self, found: Tensor) -> Tensor:
        """What is told of a finished map."""
        return found

    def loss_by_feat(self, found: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """Compute the losses at the size of the true map.

        Args:
            found: What :meth:`forward` gives.
            batch_data_samples: With the true map under :attr:`truth`, (map_channels, H, W).

        Returns:
            The losses under their names.
        """
        truth = torch.stack([sample.get(self.truth).data for sample in batch_data_samples])
        truth = truth.to(found)
        found = self.finish(resize(
            found, truth.shape[2:], mode='bilinear', align_corners=self.align_corners,
            warning=False))
        valid = self.valid(truth)
        losses: dict[str, Tensor] = {}
        is_list = isinstance(self.loss_decode, nn.ModuleList)
        for loss in self.loss_decode if is_list else [self.loss_decode]:
            value = loss(found, truth, valid)
            losses[loss.loss_name] = losses.get(loss.loss_name, 0) + value
        return losses


class LinearMapHead(MapHead):
    """Batch norm and a 1x1 convolution of patch tokens, upsampled.

    As DINOv2's linear evaluation of depth reads one block or four, with the class token beside
    every patch (M. Oquab et al., TMLR 2024, https://arxiv.org/abs/2304.07193, section 7.4).
    Tokens are normalised over their channels without weights, as in
    :class:`vpt_dense.heads.linear.LinearHead`, hence a backbone without a last norm. Scores are
    upsampled, in place of tokens: the same, as both steps are linear and the weights of the
    interpolation add up to 1.

    Args:
        in_channels: Width of the block that is read, or a list, of several.
        in_index: Which of the backbone's outputs.
        norm_cfg: Config of the batch norm.
        cls_token: Whether the class token stands beside every patch; then the backbone has
            ``out_type='raw'``.
        upsample: By how much the scores are upsampled.
        **kwargs: As in :class:`MapHead`.

    Raises:
        ValueError: If there is not one index for each of ``in_channels``.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        in_index: int | Sequence[int],
        norm_cfg: dict,
        cls_token: bool = False,
        upsample: int = 4,
        **kwargs,
    ) -> None:
        several = not isinstance(in_channels, int)
        lengths = [len(x) if isinstance(x, Sequence) else None for x in (in_channels, in_index)]
        if lengths[0] != lengths[1]:
            raise ValueError(
                'the in_channels and in_index of a head must be two integers or two lists of one '
                f'length, found {in_channels!r} and {in_index!r}')
        check_flag(cls_token, 'cls_token of a linear head')
        check_count(upsample, 'upsample of a linear head')
        width = (sum(in_channels) if several else in_channels) * (1 + cls_token)
        super().__init__(
            in_channels=in_channels, in_index=in_index, channels=width,
            input_transform='resize_concat' if several else None, norm_cfg=norm_cfg, **kwargs)
        self.cls_token, self.upsample = cls_token, upsample
        self.norm = build_norm_layer(norm_cfg, width)[1]

    def scores(self, inputs: Sequence[Features]) -> Tensor:
        """See :meth:`MapHead.scores`; h and w are ``upsample`` times those of the patches."""
        x = self._transform_inputs([self._tokens(each) for each in inputs])
        scores = self.cls_seg(self.norm(x))
        if self.upsample == 1:
            return scores
        size = [side * self.upsample for side in scores.shape[2:]]
        return F.interpolate(scores, size, mode='bilinear', align_corners=self.align_corners)

    def _tokens(self, features: Features) -> Tensor:
        """Normalised tokens (B, C, h, w), or (B, 2C, h, w) with the class token."""
        has_token = isinstance(features, tuple)
        if has_token != self.cls_token:
            raise ValueError(
                f'a linear head with cls_token={self.cls_token} needs model.backbone.out_type='
                f"'{'raw' if self.cls_token else 'featmap'}'")
        if not has_token:
            return normalise_tokens(features)
        patches, token = features
        token = normalise_tokens(token[:, :, None, None]).expand_as(patches)
        return torch.cat([normalise_tokens(patches), token], dim=1)


class DPTMapHead(MapHead, decode_heads.DPTHead):
    """Four blocks, brought to four scales and fused, at eight times the grid of the patches.

    mmseg's DPTHead (R. Ranftl et al., ICCV 2021, https://arxiv.org/abs/2103.13413), with tokens
    normalised as in :class:`LinearMapHead`.

    Args:
        in_channels: Widths of the four blocks, which are one.
        in_index: Which of the backbone's outputs.
        channels: Width of the fused maps.
        post_process_channels: Of the four scales, the finest first.
        readout_type: 'ignore'; or 'project' or 'add', which read the class token: then the backbone
            has ``out_type='raw'``.
        **kwargs: As in :class:`MapHead`.

    Raises:
        ValueError: If there are not four blocks of one width.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_index: Sequence[int],
        channels: int = 256,
        post_process_channels: Sequence[int] = (96, 192, 384, 768),
        readout_type: str = 'ignore',
        **kwargs,
    ) -> None:
        lists = all(isinstance(x, Sequence) and len(x) == 4 for x in (in_channels, in_index))
        if not lists or len(set(in_channels)) != 1 or len(post_process_channels) != 4:
            raise ValueError(
                'a DPT head reads four blocks of one width: in_channels, in_index and '
                f'post_process_channels must be lists of four, found {in_channels!r}, '
                f'{in_index!r} and {post_process_channels!r}')
        super().__init__(
            embed_dims=in_channels[0], post_process_channels=list(post_process_channels),
            readout_type=readout_type, in_channels=list(in_channels), in_index=list(in_index),
            channels=channels, input_transform='multiple_select', **kwargs)

    def scores(self, inputs: Sequence[Features]) -> Tensor:
        """See :meth:`MapHead.scores`."""
        readout = self.reassemble_blocks.readout_type
        if any(isinstance(each, tuple) != (readout != 'ignore') for each in inputs):
            wanted = 'featmap' if readout == 'ignore' else 'raw'
            raise ValueError(
                f"a DPT head with readout_type='{readout}' needs model.backbone.out_type="
                f"'{wanted}'")
        pairs = []
        for each in inputs:
            patches, token = each if isinstance(each, tuple) else (each, None)
            if token is not None:
                token = F.layer_norm(token, token.shape[1:], eps=1e-6)
            pairs.append((normalise_tokens(patches), token))
        return decode_heads.DPTHead.forward(self, pairs)
