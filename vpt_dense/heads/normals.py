"""Heads that tell which way surfaces face."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_dense.argument_checks import check_choice
from vpt_dense.heads.map_losses import MapLoss
from vpt_dense.heads.maps import DPTMapHead, LinearMapHead
from vpt_dense.registry import MODELS

#: From here to the ends of [-1, 1] the slope of arccos is cut off.
_EDGE = 1e-6


class Normals:
    """Unit vectors (x, y, z), put in front of a :class:`vpt_dense.heads.maps.MapHead`.

    Three channels divided by their length, in float32. What was averaged, over places or windows,
    is divided again.

    Args:
        **kwargs: As in the head.
    """

    truth = 'gt_normal_map'

    def __init__(self, **kwargs) -> None:
        super().__init__(number=3, map_channels=3, **kwargs)

    def to_map(self, scores: Tensor) -> Tensor:
        """Scores (B, 3, h, w) to unit vectors, float32."""
        return self.finish(scores.float())

    def finish(self, found: Tensor) -> Tensor:
        """See :meth:`vpt_dense.heads.maps.MapHead.finish`: vectors (..., 3, h, w) of length 1."""
        return F.normalize(found, dim=-3)

    def valid(self, truth: Tensor) -> Tensor:
        """See :meth:`vpt_dense.heads.maps.MapHead.valid`: zeros stand for no normal."""
        return (truth != 0).any(1, keepdim=True)


@MODELS.register_module()
class LinearNormalHead(Normals, LinearMapHead):
    """Normals by a linear layer: :class:`Normals`, :class:`vpt_dense.heads.maps.LinearMapHead`.

    Args:
        **kwargs: As in both.
    """


@MODELS.register_module()
class DPTNormalHead(Normals, DPTMapHead):
    """Normals by a DPT head, see :class:`Normals` and :class:`vpt_dense.heads.maps.DPTMapHead`.

    Args:
        **kwargs: As in both.
    """


@MODELS.register_module()
class NormalLoss(MapLoss):
    """The mean over valid pixels of 1 - cos, or of the angle in radians.

    G. Bae et al., ICCV 2021, https://arxiv.org/abs/2109.09881, section 3.1, name both. The angle
    treats all errors alike; 1 - cos hardly sees small ones. The slope of the angle is cut off where
    cos is within 1e-6 of 1 or -1.

    Args:
        kind: 'cosine' or 'angle'.
        loss_weight: As in :class:`vpt_dense.heads.map_losses.MapLoss`.
        loss_name: As there.
    """

    def __init__(
        self, kind: str = 'cosine', loss_weight: float = 1.0, loss_name: str = 'loss_normal'
    ) -> None:
        super().__init__(loss_weight, loss_name)
        self.kind = check_choice(kind, 'kind of NormalLoss', ('cosine', 'angle'))

    def forward(self, found: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """Compare unit vectors.

        Args:
            found: (B, 3, H, W).
            truth: (B, 3, H, W).
            valid: (B, 1, H, W) bool.

        Returns:
            A scalar; 0 where nothing is valid.
        """
        cosine = (found * truth).sum(1, keepdim=True)
        errors = 1 - cosine
        if self.kind == 'angle':
            errors = torch.arccos(cosine.clamp(_EDGE - 1, 1 - _EDGE))
        return self.loss_weight * (errors * valid).sum() / valid.sum().clamp(min=1)
