"""Heads that find edges, and how far from one a pixel is."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_dense.argument_checks import check_number
from vpt_dense.heads.map_losses import MapLoss
from vpt_dense.heads.maps import LinearMapHead
from vpt_dense.registry import MODELS

#: What stands for an edge that is not known: 0 and 1 say no and yes.
UNKNOWN_EDGE = 255


class Edges:
    """Edges: one channel of logits, put in front of a :class:`vpt_dense.heads.maps.MapHead`.

    The true map is 0, 1, or 255 where nobody knows; what is predicted, a probability.

    Args:
        **kwargs: As in the head.
    """

    truth, void, classifies = 'gt_edge_map', UNKNOWN_EDGE, True

    def __init__(self, **kwargs) -> None:
        super().__init__(number=1, map_channels=1, **kwargs)

    def to_map(self, scores: Tensor) -> Tensor:
        """Logits (B, 1, h, w), float32."""
        return scores.float()

    def valid(self, truth: Tensor) -> Tensor:
        """See :meth:`vpt_dense.heads.maps.MapHead.valid`."""
        return truth != UNKNOWN_EDGE

    def answer(self, found: Tensor) -> Tensor:
        """See :meth:`vpt_dense.heads.maps.MapHead.answer`: probabilities."""
        return found.sigmoid()


class Distance:
    """Distance in pixels to the nearest edge, put in front of a head of maps.

    ``max_distance`` times a sigmoid, in float32. Below 0 stands for an unknown distance.

    Args:
        max_distance: In pixels; farther is not told apart.
        **kwargs: As in the head.

    Raises:
        ValueError: If it is not above 0.
    """

    truth, void = 'gt_distance_map', -1

    def __init__(self, max_distance: float = 20.0, **kwargs) -> None:
        self.max_distance = check_number(
            max_distance, 'max_distance of a head of distances', positive=True)
        super().__init__(number=1, map_channels=1, **kwargs)

    def to_map(self, scores: Tensor) -> Tensor:
        """Scores (B, 1, h, w) to pixels, float32."""
        return self.max_distance * scores.float().sigmoid()

    def valid(self, truth: Tensor) -> Tensor:
        """See :meth:`vpt_dense.heads.maps.MapHead.valid`."""
        return truth >= 0


@MODELS.register_module()
class LinearEdgeHead(Edges, LinearMapHead):
    """Edges by a linear layer, see :class:`Edges` and :class:`vpt_dense.heads.maps.LinearMapHead`.

    Args:
        **kwargs: As in both.
    """


@MODELS.register_module()
class LinearDistanceHead(Distance, LinearMapHead):
    """Distances by a linear layer: :class:`Distance`, :class:`vpt_dense.heads.maps.LinearMapHead`.

    Args:
        **kwargs: As in both.
    """


@MODELS.register_module()
class EdgeLoss(MapLoss):
    """Cross entropy of edges, which are few.

    ::

        loss = - sum (w y ln p + (1 - w) (1 - y) ln(1 - p)) / n

    over the n known pixels. With ``weight=None`` w is the share of pixels of the batch that are no
    edge (HED, S. Xie and Z. Tu, ICCV 2015, https://arxiv.org/abs/1504.06375, equation 2); the
    multi-task literature has 0.95.

    Args:
        weight: w, or None.
        loss_weight: As in :class:`vpt_dense.heads.map_losses.MapLoss`.
        loss_name: As there.

    Raises:
        ValueError: If w is not between 0 and 1.
    """

    def __init__(
        self, weight: float | None = 0.95, loss_weight: float = 1.0, loss_name: str = 'loss_edge'
    ) -> None:
        super().__init__(loss_weight, loss_name)
        if weight is not None and not 0 < check_number(weight, 'weight of EdgeLoss') < 1:
            raise ValueError(f'weight of EdgeLoss must be between 0 and 1, found {weight!r}')
        self.weight = weight

    def forward(self, found: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """Compare logits with edges.

        Args:
            found: (B, 1, H, W).
            truth: (B, 1, H, W).
            valid: (B, 1, H, W) bool.

        Returns:
            A scalar; 0 where nothing is valid.
        """
        edges = (truth == 1) & valid
        number = valid.sum().clamp(min=1)
        share = edges.sum().to(found) / number
        weight = 1 - share if self.weight is None else found.new_tensor(self.weight)
        each = F.binary_cross_entropy_with_logits(found, edges.to(found), reduction='none')
        each = each * torch.where(edges, weight, 1 - weight)
        return self.loss_weight * (each * valid).sum() / number


@MODELS.register_module()
class MapL1Loss(MapLoss):
    """The mean over valid pixels of abs(found - truth), of any map of one channel.

    Args:
        loss_weight: As in :class:`vpt_dense.heads.map_losses.MapLoss`.
        loss_name: As there.
    """

    def __init__(self, loss_weight: float = 1.0, loss_name: str = 'loss_l1') -> None:
        super().__init__(loss_weight, loss_name)

    def forward(self, found: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """As :meth:`EdgeLoss.forward`, with maps in their unit."""
        errors = (found - truth).abs()
        return self.loss_weight * (errors * valid).sum() / valid.sum().clamp(min=1)
