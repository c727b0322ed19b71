"""What heads have in common that know their classes by texts."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from vpt_dense.argument_checks import is_list
from vpt_dense.errors import UserError
from vpt_dense.parts import find
from vpt_dense.registry import MODELS

#: What a text is made of where nothing is said: with learnt words before it, and without.
WITH_CONTEXT, PLAIN = '{}.', 'a photo of a {}.'


class ClassTexts:
    """The texts of classes and their embeddings; to be listed before the class of the head.

    Where nothing of the text tower trains the embeddings are computed once, when the weights are
    initialised, and the tower is let go: they are a buffer, which checkpoints and deltas hold.
    Where something does, the tower is a part of the head, the buffers hold the tokens of the texts,
    and the embeddings are computed in every iteration; at test time once, as long as what trains
    stays what it was.

    Attributes:
        text: The text tower; None: nothing of it trains.
        classes: Names of the classes.
        templates: Texts with ``{}`` for the name.
        class_vectors: Buffer (classes, D), normalised, mean over the templates; NaN until they are
            computed. None where the tower trains.
        text_scale: Buffer (), the tower's ``logit_scale``; likewise.
        text_mark: Buffer (32,), uint8: SHA-256 of the texts that the other buffers are of.
    """

    #: End of the longest text, as it is known outside of the buffers; None: there are none yet.
    _longest: int | None = None

    def hold_texts(
        self, text: dict, classes: Sequence[str] | None, num_classes: int,
        templates: str | Sequence[str] | None, key: str, each_template: bool = False,
    ) -> None:
        """Take the arguments of the head, at the end of its ``__init__``.

        Args:
            text: Config of the text tower.
            classes: Names of the classes. None: not known yet; nothing can be computed before
                they are.
            num_classes: How many there are.
            templates: One, or several whose embeddings are averaged; None: :data:`WITH_CONTEXT`
                for a tower with a prompt, :data:`PLAIN` for others.
            key: The head's, for messages: 'head'.
            each_template: Whether the embeddings of the templates are kept one by one,
                (classes, templates, D), in place of their mean.

        Raises:
            ValueError: If the names are not as many, or a template has no place for the name.
        """
        if not isinstance(text, dict):
            raise ValueError(f'{key}.text must be the config of a text tower, found {text!r}')
        self._key = key
        self.classes = (
            None if classes is None else check_classes(classes, num_classes, f'{key}.classes'))
        text = dict(text)
        prompt = text.get('prompt')
        if prompt:
            part = find(prompt['type'])
            served = dict(num_classes=num_classes, image_dims=text.get('project_dims', 512))
            wanted = getattr(part, 'fills', ())
            text['prompt'] = {**{k: v for k, v in served.items() if k in wanted}, **prompt}
        if templates is None:
            templates = WITH_CONTEXT if prompt else PLAIN
        self.templates = check_templates(templates, f'{key}.templates')
        self._config, self._kept, self._each = text, None, each_template
        self.register_buffer('text_mark', torch.zeros(32, dtype=torch.uint8))
        if prompt or text.get('adapters') or text.get('trainable'):
            self.text = MODELS.build(self._typed())
            if len(self.templates) > 1:
                raise ValueError(
                    f'{key}.templates: where the text tower trains there is one, found '
                    f'{len(self.templates)}')
            ends = [not each.endswith('{}.') for each in self.templates]
            if getattr(self.text.prompt, 'position', 'end') != 'end' and any(ends):
                raise ValueError(
                    f"{key}.templates must end with '{{}}.' for prompt.position="
                    f'{self.text.prompt.position!r}, found {self.templates[0]!r}')
            self.class_vectors = self.text_scale = None
            size = self.text.context_length
            self.register_buffer('text_ids', torch.zeros(num_classes, size, dtype=torch.int64))
            self.register_buffer('text_ends', torch.zeros(num_classes, dtype=torch.int64))
        else:
            self.text = None
            width = text.get('project_dims', 512)
            shape = (num_classes, *[len(self.templates)] * each_template, width)
            self.register_buffer('class_vectors', torch.full(shape, torch.nan))
            self.register_buffer('text_scale', torch.tensor(torch.nan))

    def _typed(self) -> dict[str, Any]:
        return {'type': 'vpt_dense.CLIPTextTransformer', **self._config}

    def init_weights(self) -> None:
        """Load the text tower and compute what the buffers hold."""
        super().init_weights()
        self.start_texts()

    def start_texts(self) -> None:
        """Fill the buffers for the classes as they are named.

        Raises:
            UserError: If they are not, or the text tower's weights cannot be had.
        """
        if self.classes is None:
            raise UserError(
                f'model.{self._key}.classes: the names of the classes are needed; say them there '
                'or in dataset.classes, or put the data where the config says')
        self._kept = None
        self.text_mark = torch.tensor(list(self._mark()), dtype=torch.uint8).to(self.text_mark)
        if self.text is not None:
            ids, ends = self.text.tokenize(self._texts(self.templates[0]))
            self._longest = int(ends.max())
            place = self.text_ids.device
            self.text_ids = torch.zeros(
                len(ids), self.text.context_length, dtype=torch.int64, device=place)
            self.text_ids[:, : ids.shape[1]] = ids
            self.text_ends = ends.to(place)
            return
        tower = self.build_tower()
        self.class_vectors = self.embed_texts(tower, self.templates).to(self.class_vectors)
        self.text_scale = tower.logit_scale.detach().to(self.text_scale)

    def _mark(self) -> bytes:
        texts = [self._texts(template) for template in self.templates]
        return hashlib.sha256(json.dumps(texts).encode()).digest()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Refuse what was computed for other texts; torch calls this.

        Raises:
            UserError: If it was.
        """
        mark, ends = (state_dict.get(prefix + name) for name in ('text_mark', 'text_ends'))
        if mark is not None and mark.any() and self.classes is not None:
            if bytes(mark.tolist()) != self._mark():
                raise UserError(
                    f'the weights are of other texts than model.{self._key}.classes and templates '
                    f'say ({self._texts(self.templates[0])[0]!r}, ...): use those of the training; '
                    'predict --classes NAMES asks for others')
        if ends is not None:
            self._longest, self._kept = int(ends.max()) or None, None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def build_tower(self) -> nn.Module:
        """The text tower with its weights, frozen, on the head's device."""
        tower = MODELS.build(self._typed())
        tower.init_weights()
        device = self.class_vectors.device if self.text is None else self.text_ids.device
        return tower.to(device).eval()

    def embed_texts(self, tower: nn.Module, templates: Sequence[str]) -> Tensor:
        """The embeddings of the classes, normalised: (classes, D), of the means over templates.

        (classes, templates, D) where they are kept one by one.
        """
        with torch.no_grad():
            found = []
            for template in templates:
                device = tower.pos_embed.device
                ids, ends = (each.to(device) for each in tower.tokenize(self._texts(template)))
                parts = zip(ids.split(256), ends.split(256), strict=True)
                found.append(torch.cat([F.normalize(tower(*part), dim=-1) for part in parts]))
            stacked = torch.stack(found, dim=1)
            return stacked if self._each else F.normalize(stacked.sum(1), dim=-1)

    def _texts(self, template: str) -> list[str]:
        return [template.replace('{}', name.replace('_', ' ')) for name in self.classes]

    def set_classes(self, classes: Sequence[str], checkpoint: str | None = None) -> None:
        """Tell other classes apart, by their names.

        Args:
            classes: The names.
            checkpoint: The file of the text tower's weights; None: that of its ``init_cfg``.

        Raises:
            UserError: If the prompts are those of the classes of training.
            ValueError: If names are missing or twice.
        """
        classes = check_classes(classes, len(classes), 'classes')
        if self.text is not None and getattr(self.text.prompt, 'per_class', False):
            raise UserError(
                f'{self._key}.text.prompt.per_class: the words that were learnt are those of the '
                f'{self.num_classes} classes of training; other classes have none')
        self.classes, self.num_classes = classes, len(classes)
        if checkpoint is not None:
            self._config['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint)
        self.start_texts()

    def fold_texts(self) -> bool:
        """Make constants of what a text tower that was trained gives, and let the tower go.

        Returns:
            Whether there was one. What a frozen one gives is a constant already.

        Raises:
            UserError: If the embeddings depend on the image.
        """
        if self.text is None:
            return False
        if self.text.prompt is not None and self.text.prompt.reads_image:
            raise UserError(
                f'{self._key}.text.prompt: {type(self.text.prompt).__name__} makes texts for each '
                'image, there is nothing that could be stored')
        with torch.no_grad():
            vectors, scale = self._encode(None), self.text.logit_scale.detach().clone()
        for name in ('class_vectors', 'text_scale', 'text_ids', 'text_ends'):
            delattr(self, name)
        self.register_buffer('class_vectors', vectors.clone())
        self.register_buffer('text_scale', scale)
        self.text, self._kept = None, None
        return True

    def scale(self) -> Tensor:
        """What cosines are multiplied by, ()."""
        return (self.text_scale if self.text is None else self.text.logit_scale).exp()

    def embeddings(
        self, labels: Sequence[int] | None = None, images: Tensor | None = None
    ) -> Tensor:
        """The embeddings of classes, normalised.

        Args:
            labels: Of the classes; None: all.
            images: Those of images, (B, D), for prompts that depend on them.

        Returns:
            (classes, D); for prompts that depend on images (B, classes, D).
        """
        if self.text is None:
            return self.class_vectors if labels is None else self.class_vectors[list(labels)]
        if self.text.prompt is not None and self.text.prompt.reads_image:
            # One image after the other: all texts at once would be too many.
            return torch.stack([self._encode(labels, image) for image in images])
        if self.training or torch.is_grad_enabled():
            return self._encode(labels)
        trained = [parameter for name, parameter in self.text.named_parameters()
                   if name not in self.text.frozen_names]  # fmt: skip
        state = [*trained, self.text_ids]
        kept = self._kept
        same = kept is not None and kept[0] == labels and all(
            old.dtype == new.dtype and old.device == new.device and torch.equal(old, new)
            for old, new in zip(kept[1], state, strict=True))
        if not same:
            self._kept = kept = (
                labels, [each.detach().clone() for each in state], self._encode(labels))
        return kept[2]

    def _encode(self, labels: Sequence[int] | None, image: Tensor | None = None) -> Tensor:
        ids, ends = self.text_ids, self.text_ends
        if labels is not None:
            ids, ends = ids[list(labels)], ends[list(labels)]
        prompt, last = self.text.prompt, self._longest
        if last is None:
            if not isinstance(ends, FakeTensor):  # of an estimate, which has no numbers
                raise UserError(
                    f'{self._key}: the texts of the classes are not known: train the model, load '
                    'a checkpoint, or call init_weights()')
            last = self.text.tokenize(self._texts(self.templates[0]))[0].shape[1] - 1
        behind = 0 if prompt is None else prompt.least_words
        found = self.text(ids[:, : 1 + max(last, behind)], ends, image)
        half = found.dtype in (torch.float16, torch.bfloat16)
        found = F.normalize(found.float() if half else found, dim=-1)
        return found[:, None] if self._each else found


def share_weights(backbone: Any, head: Any) -> Any:
    """The config of a head whose text tower has the weights of the backbone if it names none."""
    weights = backbone.get('init_cfg') if isinstance(backbone, dict) else None
    text = head.get('text') if isinstance(head, dict) else None
    if not (isinstance(weights, dict) and isinstance(text, dict)) or 'init_cfg' in text:
        return head
    start = dict(type='Pretrained', checkpoint=weights.get('checkpoint'))
    return {**head, 'text': {**text, 'init_cfg': start}}


@contextlib.contextmanager
def without_prompt(tower: nn.Module) -> Iterator[nn.Module]:
    """Within it a backbone or text tower computes what it does without its prompt."""
    prompt, tower.prompt = tower.prompt, None
    try:
        yield tower
    finally:
        tower.prompt = prompt


def check_classes(classes: Any, number: int, key: str) -> list[str]:
    """Names of classes.

    Raises:
        ValueError: If they are no names, not as many as ``number``, or one is empty or there twice.
    """
    if not is_list(classes) or not all(isinstance(name, str) and name.strip() for name in classes):
        raise ValueError(f'{key} must be a list of names, found {classes!r}')
    if len(classes) != number:
        raise ValueError(f'{key} are {len(classes)} names, the data have {number} classes')
    twice = next((name for name in classes if list(classes).count(name) > 1), None)
    if twice is not None:
        raise ValueError(f'{key}: {twice!r} is there twice')
    return list(classes)


def check_templates(templates: Any, key: str) -> list[str]:
    """Texts with a place for a name.

    Raises:
        ValueError: If one has none.
    """
    found = [templates] if isinstance(templates, str) else templates
    if not is_list(found) or not found or not all(
            isinstance(each, str) and each.count('{}') == 1 for each in found):
        raise ValueError(
            f"{key} must be a text with one {{}} for the name of a class, such as {PLAIN!r}, or a "
            f'list of them, found {templates!r}')
    return list(found)
