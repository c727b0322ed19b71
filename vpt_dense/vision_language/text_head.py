"""Heads that classify images by the texts of the classes."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models.heads import ClsHead
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_number, is_int, is_list
from vpt_dense.registry import MODELS
from vpt_dense.vision_language.class_texts import (
    PLAIN,
    ClassTexts,
    check_templates,
    whole,
    without_prompt,
)


@MODELS.register_module()
class TextHead(ClassTexts, ClsHead):
    """Scores each class by the cosine of the image's embedding and that of the class's text.

    score = exp(logit_scale) cos(image, text) (Radford et al., ICML 2021,
    https://arxiv.org/abs/2103.00020, section 2.3); the loss is the cross-entropy of its softmax.

    Args:
        num_classes: Classes of the data.
        text: Config of the text tower, a :class:`vpt_dense.backbones.clip_text.CLIPTextTransformer`
            (the default ``type``). With ``prompt``, ``adapters`` or ``trainable`` it trains.
        classes: Their names; in a config they are filled in from the data set. '_' is a blank.
        templates: A text with ``{}`` for the name, or several, over which the embeddings are
            averaged. Default: 'a photo of a {}.', and '{}.' behind learnt words.
        among: Labels of the classes that are told apart, as the classes seen in training or those
            that are not; others score minus infinity. None: all.
        init_cfg: As in mmengine.
        **kwargs: As in :class:`mmpretrain.ClsHead`.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    #: Whether it needs the image's embedding of a backbone without prompts too.
    reads_frozen = False

    def __init__(
        self,
        num_classes: int,
        text: dict,
        classes: Sequence[str] | None = None,
        templates: str | Sequence[str] | None = None,
        among: Sequence[int] | None = None,
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        super().__init__(init_cfg=init_cfg, **kwargs)
        self.num_classes = check_count(num_classes, 'head.num_classes')
        self.hold_texts(text, classes, num_classes, templates, 'head')
        self.among = self._check_among(among)

    def _check_among(self, among: Any) -> list[int] | None:
        if among is None:
            return None
        fits = is_list(among) and among and all(is_int(n, 0) for n in among)
        if not fits or max(among) >= self.num_classes or len(set(among)) < len(among):
            raise ValueError(
                f'head.among must be labels from 0 to {self.num_classes - 1}, none twice, found '
                f'{among!r}')
        if self.text is not None and getattr(self.text.prompt, 'per_class', False):
            raise ValueError(
                'head.text.prompt.per_class: words of its own for each class are learnt for all '
                'classes, head.among leaves some out')
        number = getattr(self.loss_module, 'num_classes', None)
        if number is not None and number != len(among):
            raise ValueError(
                f'head.loss.num_classes is {number}, but head.among tells {len(among)} classes '
                'apart; leave it out')
        return list(among)

    def set_classes(self, classes: Sequence[str], checkpoint: str | None = None) -> None:
        """See :meth:`.ClassTexts.set_classes`."""
        super().set_classes(classes, checkpoint)
        self.among = None

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Turn features, the last of them the embeddings (B, D), into scores (B, classes)."""
        images = unit(self.pre_logits(feats))
        return self._spread(self.scale() * compare(images, self.embeddings(self.among, images)))

    def _spread(self, scores: Tensor) -> Tensor:
        """Scores of some classes among those of all, (B, classes)."""
        if self.among is None:
            return scores
        spread = scores.new_full((len(scores), self.num_classes), -torch.inf)
        spread[:, self.among] = scores
        return spread

    def _get_loss(self, cls_score: Tensor, data_samples: list, **kwargs) -> dict[str, Tensor]:
        """As upstream, of the classes that are told apart.

        Those with minus infinity would make the loss of soft labels infinite.

        Raises:
            ValueError: If an image is of another class.
        """
        if self.among is not None:
            cls_score = cls_score[:, self.among]
            data_samples = [self._of_among(sample) for sample in data_samples]
        return super()._get_loss(cls_score, data_samples, **kwargs)

    def _of_among(self, sample: DataSample) -> DataSample:
        if 'gt_score' in sample:
            return DataSample().set_gt_score(sample.gt_score[self.among])
        label = int(sample.gt_label)
        if label not in self.among:
            raise ValueError(
                f'an image is of class {label} ({self.classes[label]!r}), which is not in '
                'head.among; class_split takes the images of these classes alone')
        return DataSample().set_gt_label(
            sample.gt_label.new_tensor([self.among.index(label)]))


def unit(embeddings: Tensor) -> Tensor:
    """Normalised (..., D), in float32 at least: scores are a hundred times their products."""
    return F.normalize(whole(embeddings), dim=-1)


def compare(images: Tensor, texts: Tensor) -> Tensor:
    """Cosines of normalised (B, D) with (classes, D) or (B, classes, D): (B, classes)."""
    with torch.autocast(images.device.type, enabled=False):
        texts = texts.to(images.dtype)
        if texts.ndim == 2:
            return images @ texts.T
        return torch.einsum('bd,bcd->bc', images, texts)


@MODELS.register_module()
class SEPHead(TextHead):
    """SEP's head: embeddings of both towers with and without prompts (arXiv 2405.15549).

    With f, t the normalised embeddings of image and texts with prompts and f0, t0 those without,
    the score is exp(logit_scale) cos(f + f0, t + t0), and the loss its cross-entropy plus
    ``text_weight`` mean(1 - cos(t, t0)) + ``image_weight`` mean(1 - cos(f, f0)) +
    ``prototype_weight`` (CE(10 cos(f, W)) + CE(10 cos(f0, W))), W (classes, D) learnt, which start
    at t0; the weights are the authors'.

    Args:
        num_classes: As in :class:`TextHead`.
        text: As there.
        frozen_templates: Those of the texts without prompts.
        text_weight: See above.
        image_weight: See above.
        prototype_weight: See above; 0: there is no W.
        **kwargs: As there.
    """

    reads_frozen = True

    def __init__(
        self,
        num_classes: int,
        text: dict,
        frozen_templates: str | Sequence[str] = PLAIN,
        text_weight: float = 8.0,
        image_weight: float = 6.0,
        prototype_weight: float = 0.5,
        **kwargs,
    ) -> None:
        super().__init__(num_classes, text, **kwargs)
        for key in ('text_weight', 'image_weight', 'prototype_weight'):
            setattr(self, key, check_number(locals()[key], f'head.{key}'))
        if self.text is None or self.text.prompt is None or len(self.text.adapters):
            raise ValueError(
                'head: SEPHead compares a text tower with its prompt and without: head.text needs '
                'a prompt, and no adapters')
        self.frozen_templates = check_templates(frozen_templates, 'head.frozen_templates')
        width = self.text.project_dims
        self.register_buffer('frozen_vectors', torch.full((num_classes, width), torch.nan))
        self.prototypes = (
            nn.Parameter(torch.zeros(num_classes, width)) if prototype_weight else None)

    def start_texts(self) -> None:
        """See :meth:`.ClassTexts.start_texts`."""
        super().start_texts()
        with without_prompt(self.text) as tower:
            vectors = self.embed_texts(tower, self.frozen_templates)
        if self.prototypes is not None:
            if len(vectors) != len(self.prototypes):  # other classes are predicted only
                self.prototypes = nn.Parameter(vectors.clone())
            with torch.no_grad():
                self.prototypes.copy_(vectors)
        self.frozen_vectors = vectors

    def _embeddings(self, feats: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """f, f0, t, t0."""
        images, plain = (unit(feats[i]) for i in (-1, -2))
        texts = self.embeddings(self.among)
        frozen = self.frozen_vectors
        return images, plain, texts, frozen if self.among is None else frozen[self.among]

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Turn embeddings without and with prompts, each (B, D), into scores (B, classes)."""
        return self._scores(*self._embeddings(feats))

    def _scores(self, images: Tensor, plain: Tensor, texts: Tensor, frozen: Tensor) -> Tensor:
        images, texts = unit(images + plain), unit(texts + frozen)
        return self._spread(self.scale() * compare(images, texts))

    def loss(self, feats: tuple[Tensor, ...], data_samples: list, **kwargs) -> dict[str, Tensor]:
        """The losses, see the class."""
        images, plain, texts, frozen = found = self._embeddings(feats)
        losses = self._get_loss(self._scores(*found), data_samples, **kwargs)
        losses['loss_text'] = self.text_weight * (1 - (texts * frozen).sum(-1)).mean()
        losses['loss_image'] = self.image_weight * (1 - (images * plain).sum(-1)).mean()
        if self.prototypes is not None:
            prototypes = unit(self.prototypes)
            if self.among is not None:
                prototypes = prototypes[self.among]
            losses['loss_prototypes'] = self.prototype_weight * sum(
                self._get_loss(self._spread(10 * compare(each, prototypes)), data_samples)['loss']
                for each in (images, plain))
        return losses
