"""A segmentor whose classes come in steps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vpt_dense.prompts import StepPrompts
from vpt_dense.registry import MODELS
from vpt_dense.segmentors import EncoderDecoder

#: The score of classes that have not come: finite, as maps of scores are interpolated.
UNSEEN = -1e4


class StepConv(nn.Module):
    """The last layer of a decode head: a 1x1 convolution for each step.

    A step's scores are of 'none of mine' and of its own classes. In training it returns those of
    the step that trains, (B, 1 + own, h, w). Otherwise the scores of all classes are put side by
    side, (B, K, h, w): each step's minus its 'none of mine', which makes steps comparable; 0 for
    the background, if there is one; :data:`UNSEEN` for others.

    Args:
        channels: Of the features.
        classes: K.
        steps: Labels of each step, without that of the background.
        step: That trains.
        background: Label of the background; None: there is none.
        among: The steps whose classes are told apart in a test.
    """

    def __init__(
        self, channels: int, classes: int, steps: Sequence[Sequence[int]], step: int,
        background: int | None, among: Sequence[int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels, 1 + len(own), 1) for own in steps)
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.01)  # as mmseg's heads start
            nn.init.zeros_(layer.bias)
        self.classes, self.steps, self.step = classes, [list(own) for own in steps], step
        self.background, self.among = background, list(among)
        #: Steps whose scores a pass gives; others count as unseen.
        self.active: list[int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """See the class; x is (B, channels, h, w)."""
        if self.training:
            return self.layers[self.step](x)
        scores = x.new_full((x.shape[0], self.classes, *x.shape[2:]), UNSEEN)
        for step in self.among if self.active is None else self.active:
            own = self.layers[step](x)
            scores[:, self.steps[step]] = (own[:, 1:] - own[:, :1]).to(scores.dtype)
        if self.background is not None:
            scores[:, self.background] = 0
        return scores


@MODELS.register_module()
class StepEncoderDecoder(EncoderDecoder):
    """A segmentor of which each step has a last layer of its own, :class:`StepConv`.

    Labels of other steps, and the background, are 'none of mine' in a training. With
    :class:`vpt_dense.prompts.StepPrompts` a test passes the images through the backbone once for
    each step, with its prompts, and takes the step's classes from that pass.

    Args:
        continual: ``steps``, ``step``, ``background``, ``among`` of :class:`StepConv`, and
            ``frozen_head``: whether all of the heads but the step's layer is frozen, and the neck,
            batch norms included.
        **kwargs: As in :class:`vpt_dense.segmentors.EncoderDecoder`.

    Raises:
        ValueError: If a head has no last convolution.
    """

    def __init__(self, *, continual: dict[str, Any], **kwargs) -> None:
        super().__init__(**kwargs)
        settings = dict(continual)
        self.frozen_head = settings.pop('frozen_head')
        heads = [self.decode_head]
        if self.with_auxiliary_head:
            found = self.auxiliary_head
            heads += list(found) if isinstance(found, nn.ModuleList) else [found]
        for head in heads:
            layer = getattr(head, 'conv_seg', None)
            if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1):
                raise ValueError(
                    f'continual: a {type(head).__name__} ends in no 1x1 convolution; take another '
                    'decode head')
            if self.frozen_head:
                head.requires_grad_(False)
            head.conv_seg = StepConv(layer.in_channels, head.num_classes, **settings)
            for step, own in enumerate(head.conv_seg.layers):
                own.requires_grad_(step == settings['step'])
        #: What may be frozen: a list, so that their names among the modules stay.
        self._behind = [*heads, *([self.neck] if self.with_neck else [])]
        if self.frozen_head and self.with_neck:
            self.neck.requires_grad_(False)
        table = torch.zeros(256, dtype=torch.long)
        for channel, label in enumerate(settings['steps'][settings['step']]):
            table[label] = 1 + channel
        table[self.decode_head.ignore_index] = self.decode_head.ignore_index
        self.register_buffer('own_labels', table, persistent=False)

    def train(self, mode: bool = True) -> 'StepEncoderDecoder':
        """As usual, but what is frozen of heads and neck stays as it is in a test."""
        super().train(mode)
        if mode and self.frozen_head:
            for part in self._behind:
                for module in part.modules():
                    if isinstance(module, nn.modules.batchnorm._NormBase):
                        module.eval()
        return self

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """The loss of the step's own scores, with labels as :class:`StepConv` counts."""
        whole = [sample.gt_sem_seg.data for sample in data_samples]
        try:
            for sample, labels in zip(data_samples, whole, strict=True):
                sample.gt_sem_seg.data = self.own_labels[labels.long()]
            return super().loss(inputs, data_samples)
        finally:
            for sample, labels in zip(data_samples, whole, strict=True):
                sample.gt_sem_seg.data = labels

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Scores (B, K, H, W): see the class."""
        prompts, last = self.backbone.prompt, self.decode_head.conv_seg
        if not isinstance(prompts, StepPrompts):
            return super().encode_decode(inputs, batch_img_metas)
        trained, best = prompts.active, None
        try:
            for step in last.among:
                prompts.active, last.active = step, [step]
                own = super().encode_decode(inputs, batch_img_metas)
                best = own if best is None else torch.maximum(best, own)
        finally:
            prompts.active, last.active = trained, None
        return best
