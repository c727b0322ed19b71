"""Heads that tell how far away things are, in metres."""

import torch
from torch import Tensor

from vpt_dense.argument_checks import check_count, check_number
from vpt_dense.heads.maps import DPTMapHead, LinearMapHead
from vpt_dense.registry import MODELS

#: What is added to every weight of a bin.
_LEAST = 0.1


class Depth:
    """Depth as a mean of bins, put in front of a :class:`vpt_dense.heads.maps.MapHead`.

    With scores s and bins b, even from ``min_depth`` to ``max_depth``::

        w_k = max(s_k, 0) + 0.1        depth = sum_k w_k b_k / sum_k w_k

    (AdaBins, S. F. Bhat et al., CVPR 2021, https://arxiv.org/abs/2011.14141; the linear norm and
    even bins of DINOv2's evaluation, https://arxiv.org/abs/2304.07193, section 7.4.) Computed in
    float32.

    Args:
        min_depth: The first bin, in metres.
        max_depth: The last one; true depths beyond it are left out of the losses.
        bins: How many there are.
        **kwargs: As in the head.

    Raises:
        ValueError: If the bins do not rise from above 0.
    """

    truth = 'gt_depth_map'

    def __init__(
        self, min_depth: float = 1e-3, max_depth: float = 10.0, bins: int = 256, **kwargs
    ) -> None:
        for key, value in (('min_depth', min_depth), ('max_depth', max_depth)):
            check_number(value, f'depth_head.{key}', positive=True)
        check_count(bins, 'depth_head.bins', 2)
        if not min_depth < max_depth:
            raise ValueError(
                f'depth_head: min_depth {min_depth} must be below max_depth {max_depth}, in metres')
        super().__init__(number=bins, map_channels=1, **kwargs)
        self.min_depth, self.max_depth = float(min_depth), float(max_depth)
        places = torch.linspace(self.min_depth, self.max_depth, bins)[:, None, None]
        self.register_buffer('bins', places, persistent=False)  # (K, 1, 1)

    def to_map(self, scores: Tensor) -> Tensor:
        """Scores (B, bins, h, w) to depths (B, 1, h, w) in metres, float32."""
        weights = scores.float().relu() + _LEAST
        return (weights * self.bins).sum(1, keepdim=True) / weights.sum(1, keepdim=True)

    def valid(self, truth: Tensor) -> Tensor:
        """See :meth:`vpt_dense.heads.maps.MapHead.valid`: 0 stands for no depth."""
        return (truth > 0) & (truth <= self.max_depth)


@MODELS.register_module()
class LinearDepthHead(Depth, LinearMapHead):
    """Depth by a linear layer, see :class:`Depth` and :class:`vpt_dense.heads.maps.LinearMapHead`.

    Args:
        **kwargs: As in both.
    """


@MODELS.register_module()
class DPTDepthHead(Depth, DPTMapHead):
    """Depth by a DPT head, see :class:`Depth` and :class:`vpt_dense.heads.maps.DPTMapHead`.

    Args:
        **kwargs: As in both.
    """
