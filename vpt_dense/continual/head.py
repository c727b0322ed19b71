"""A linear head whose classes come in steps."""

from collections.abc import Sequence

import torch
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from vpt_dense.registry import MODELS


@MODELS.register_module()
class StepHead(LinearClsHead):
    """A linear layer for each step; that of the step trains, with its own classes alone.

    Predictions are among the classes so far: later ones have a score of minus infinity. All layers
    start at zero: with random weights the scores of a step would hide those of others.

    Args:
        num_classes: Of all steps.
        in_channels: Width of the features.
        steps: The labels of each step; every label is in one.
        step: The step that trains, from 0.
        joint: Whether the layers of all steps so far train, with all their classes.
        own_alone: Whether predictions are among the classes of the step alone.
        temperature: What the scores are divided by in the loss.
        **kwargs: As in :class:`mmpretrain.LinearClsHead`, without ``init_cfg``.

    Attributes:
        steps: A ``ModuleList`` of the layers.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        steps: Sequence[Sequence[int]],
        step: int = 0,
        joint: bool = False,
        own_alone: bool = False,
        temperature: float = 1.0,
        **kwargs,
    ) -> None:
        start = dict(type='Constant', layer='Linear', val=0)
        super().__init__(num_classes, in_channels, init_cfg=start, **kwargs)
        del self.fc
        self.steps = nn.ModuleList(nn.Linear(in_channels, len(labels)) for labels in steps)
        self.step, self.temperature = step, temperature
        first = 0 if joint else step
        for i, layer in enumerate(self.steps):
            layer.requires_grad_(first <= i <= step)
        labels = [label for part in steps for label in part]
        places = torch.empty(num_classes, dtype=torch.long)
        places[labels] = torch.arange(num_classes)
        #: Label -> its column among those of all steps.
        self.register_buffer('places', places, persistent=False)
        sizes = [len(part) for part in steps]
        #: Columns that train, and those so far.
        self.own = slice(sum(sizes[:first]), sum(sizes[: step + 1]))
        first = sum(sizes[:step]) if own_alone else 0
        self.seen = slice(first, sum(sizes[: step + 1]))
        #: Labels of the columns that train, in their order.
        self._own_labels = labels[self.own]

    def _columns(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Scores in the order of the steps, (B, classes)."""
        features = self.pre_logits(feats)
        return torch.cat([layer(features) for layer in self.steps], dim=1)

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Scores in the order of the labels, (B, classes)."""
        scores = self._columns(feats)
        scores[:, : self.seen.start] = -torch.inf
        scores[:, self.seen.stop :] = -torch.inf
        return scores[:, self.places]

    def loss(self, feats: tuple[Tensor, ...], data_samples: list[DataSample], **kwargs) -> dict:
        """The loss of the columns that train; and their accuracies, with ``cal_acc``."""
        scores = self._columns(feats)[:, self.own] / self.temperature
        own = [DataSample() for _ in data_samples]
        for mine, given in zip(own, data_samples, strict=True):
            if 'gt_score' in given:  # of images that are mixed
                mine.set_gt_score(given.gt_score[self._own_labels])
            else:
                mine.set_gt_label(self.places[given.gt_label] - self.own.start)
        return self._get_loss(scores, own, **kwargs)
