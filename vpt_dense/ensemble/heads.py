"""Heads and necks of an ensemble: one for each member, on features laid out member by member."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_dense.ensemble.members import Members
from vpt_dense.registry import MODELS


class _Heads(Members):
    """The base of both kinds of heads.

    Args:
        seeds: Of the members.
        head: Config of a member.
        init_cfg: As in :class:`mmengine.model.BaseModule`; members start by their own.
    """

    def __init__(
        self, seeds: Sequence[int], head: dict[str, Any], init_cfg: dict | None = None
    ) -> None:
        super().__init__('head', head, seeds, init_cfg=init_cfg)

    def features(self, feats: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Take features, each (k * B, ...), apart: those of each member."""
        return list(zip(*map(self.split, feats), strict=True))

    def loss(self, feats: Sequence[Tensor], data_samples: list, *args: Any, **kwargs: Any) -> dict:
        """Compute the losses of all members, each from its own features and data samples.

        Their sum is what trains: so every member gets the gradient that it would get alone.

        Args:
            feats: Features, each (k * B, ...).
            data_samples: k * B of them.
            *args: As the members' ``loss`` takes them.
            **kwargs: As the members' ``loss`` takes them.

        Returns:
            For each loss and each other figure of a member ``m<i>.<name>``; and the mean over the
            members, with ``mean`` for ``loss`` in the name, so that it is not added to the losses.
        """
        parts = zip(self.members, self.features(feats), self.split(data_samples), strict=True)
        found = [member.loss(own, samples, *args, **kwargs) for member, own, samples in parts]
        means = {
            name.replace('loss', 'mean'): sum(_figure(each[name]) for each in found) / len(found)
            for name in found[0]
        }
        return means | {
            f'm{i}.{name}': value for i, each in enumerate(found) for name, value in each.items()
        }


@MODELS.register_module()
class EnsembleDecodeHead(_Heads):
    """Decode heads of an ensemble, for mmseg's ``EncoderDecoder`` and ours.

    Prediction: the mean of the members' probabilities at every pixel (softmax; the sigmoid where a
    head has one channel), at the size at which mmseg resizes logits to the image or window. It is
    handed on as its logarithm, which is as good as logits: what comes after adds the same number
    for all classes at most. Sliding windows and resizing therefore average, as in mmseg, logits,
    here of the ensemble.

    Args:
        seeds: Of the members.
        head: Config of a member, any decode head.
        init_cfg: Not used by the members.
    """

    def __init__(
        self, seeds: Sequence[int], head: dict[str, Any], init_cfg: dict | None = None
    ) -> None:
        super().__init__(seeds, head, init_cfg)
        first = self.members[0]
        for name in ('num_classes', 'out_channels', 'align_corners', 'threshold', 'ignore_index'):
            setattr(self, name, getattr(first, name))

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Turn feature maps, each (k * B, C, h, w), into scores (B, classes, H, W) of them all."""
        own = zip(self.members, self.features(feats), strict=True)
        return mean_probability(member(each) for member, each in own)

    def predict(
        self, feats: Sequence[Tensor], batch_img_metas: list[dict], test_cfg: dict | None
    ) -> Tensor:
        """Predict, resized to the image or window.

        Args:
            feats: Feature maps, each (k * B, C, h, w).
            batch_img_metas: Of the B images.
            test_cfg: As the members' ``predict`` takes it.

        Returns:
            (B, classes, H, W): see :func:`mean_probability`.
        """
        own = zip(self.members, self.features(feats), strict=True)
        return mean_probability(
            member.predict(each, batch_img_metas, test_cfg) for member, each in own)


@MODELS.register_module()
class EnsembleClsHead(_Heads):
    """Classification heads of an ensemble: the mean of the members' softmax.

    Args:
        seeds: Of the members.
        head: Config of a member: a ``ClsHead`` of mmpretrain, whose scores pass a softmax.
        init_cfg: Not used by the members.

    Raises:
        ValueError: If the head is another one.
    """

    def __init__(
        self, seeds: Sequence[int], head: dict[str, Any], init_cfg: dict | None = None
    ) -> None:
        super().__init__(seeds, head, init_cfg)
        from mmpretrain.models.heads import ClsHead

        if not isinstance(self.members[0], ClsHead):
            raise ValueError(
                f'model.head.head must be a ClsHead for an ensemble: it averages what the softmax '
                f'gives, found {type(self.members[0]).__name__}'
            )

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Turn features, each (k * B, C), into scores (B, classes) of them all."""
        own = zip(self.members, self.features(feats), strict=True)
        return mean_probability(member(each) for member, each in own)

    def predict(self, feats: Sequence[Tensor], data_samples: list | None = None) -> list:
        """Predict: data samples with ``pred_score``, the mean probabilities, and ``pred_label``.

        Args:
            feats: Features, each (k * B, C).
            data_samples: Of the B images; None: new ones.
        """
        found = []
        for member, own in zip(self.members, self.features(feats), strict=True):
            samples = data_samples and [sample and sample.clone() for sample in data_samples]
            found.append(member.predict(own, samples))
        for i, sample in enumerate(data_samples or found[0]):
            score = sum(each[i].pred_score for each in found) / len(found)
            found[0][i] = (sample or found[0][i]).set_pred_score(score).set_pred_label(
                score.argmax(dim=0, keepdim=True).detach())
        return found[0]


@MODELS.register_module()
class EnsembleNeck(Members):
    """Necks of an ensemble.

    Args:
        seeds: Of the members.
        neck: Config of a member.
        init_cfg: Not used by the members.
    """

    def __init__(
        self, seeds: Sequence[int], neck: dict[str, Any], init_cfg: dict | None = None
    ) -> None:
        super().__init__('neck', neck, seeds, init_cfg=init_cfg)

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Apply each member's neck to its features, each (k * B, ...); as many come out."""
        parts = zip(*map(self.split, feats), strict=True)
        outs = [member(own) for member, own in zip(self.members, parts, strict=True)]
        return tuple(torch.cat(same) for same in zip(*outs, strict=True))


def _figure(value: Tensor | list[Tensor]) -> Tensor:
    """A scalar, as mmengine's ``parse_losses`` makes it of a loss or another figure."""
    parts = value if isinstance(value, list) else [value]
    return sum(part.detach().mean() for part in parts)


def mean_probability(logits: Iterable[Tensor]) -> Tensor:
    """Average probabilities over members, as logits.

    Args:
        logits: Those of each member, one after the other, (B, classes, ...). With one channel they
            are a sigmoid's, otherwise a softmax's.

    Returns:
        (B, classes, ...), float32 at least: the logarithm of the mean probability, whose softmax is
        the mean probability; or, of one channel, what has it as its sigmoid. Always finite for
        finite logits.
    """
    total = None
    number = 0
    for each in logits:
        each = each.to(torch.promote_types(each.dtype, torch.float32))
        # A probability may be too small for a number, its logarithm is not.
        if each.shape[1] > 1:
            part = F.log_softmax(each, dim=1)
        else:
            part = torch.cat((F.logsigmoid(each), F.logsigmoid(-each)), dim=1)
        total = part if total is None else torch.logaddexp(total, part)
        binary = each.shape[1] == 1
        number += 1
        del each, part
    if binary:
        return total[:, :1] - total[:, 1:]
    return total - math.log(number)
