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
    #: Whether the buffers hold what belongs to the texts.
    _known = False

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
            if getattr(part, 'reads_image', False) and key != 'head':
                raise ValueError(
                    f'{key}.text.prompt: {part.__name__} makes texts for the embedding of each '
                    'image, which classifiers alone hand to it; take a ContextPrompt')
            served = dict(num_classes=num_classes, image_dims=text.get('project_dims', 512))
            text['prompt'] = fill_in(prompt, served, f'{key}.text.prompt')
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
        if self.text is not None:
            self._check_weights()
        super().init_weights()
        self.start_texts()

    def check_widths(self, maps: Sequence[int], width: int) -> None:
        """Refuse features of other widths than the head reads.

        Args:
            maps: Widths of the maps of earlier blocks.
            width: That of the embeddings.

        Raises:
            ValueError: If so.
        """
        if width != self.in_channels:
            raise ValueError(
                f'model.backbone.project_dims is {width}, model.{self._key}.in_channels is '
                f'{self.in_channels}')

    def start_texts(self) -> None:
        """Fill the buffers for the classes as they are named.

        Raises:
            UserError: If they are not, or the text tower's weights cannot be had.
        """
        if self.classes is None:
            raise UserError(
                f'model.{self._key}.classes: the names of the classes are needed; say them there '
                'or in dataset.classes, or put the data where the config says')
        self._kept, self._known = None, True
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
        self._known = self._known or mark is not None and bool(mark.any())
        if ends is not None:
            self._longest, self._kept = int(ends.max()) or None, None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def build_tower(self) -> nn.Module:
        """The text tower with its weights, frozen, on the head's device.

        Raises:
            UserError: If they cannot be had.
        """
        self._check_weights()
        tower = MODELS.build(self._typed())
        tower.init_weights()
        device = self.class_vectors.device if self.text is None else self.text_ids.device
        return tower.to(device).eval()

    def _check_weights(self) -> None:
        """Refuse a text tower at its random start: the texts would mean nothing."""
        if not self._config.get('init_cfg'):
            raise UserError(
                f'model.{self._key}.text.init_cfg names no weights of the text tower, and neither '
                "does model.backbone.init_cfg: set dict(type='Pretrained', checkpoint=FILE), a "
                'file of a whole CLIP')

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
            UserError: If the prompts are those of the classes of training; or the text tower or
                its tokenizer is not the one that the texts of the training were computed with.
            ValueError: If names are missing or twice, or there is only one.
        """
        classes = check_classes(classes, len(classes), 'classes')
        if len(classes) < 2:
            raise ValueError(
                f'classes names {classes[0]!r} alone: the score of one class is always 1; name '
                "what there may be beside it too ('background', 'something else')")
        if self.text is not None and getattr(self.text.prompt, 'per_class', False):
            raise UserError(
                f'{self._key}.text.prompt.per_class: the words that were learnt are those of the '
                f'{self.num_classes} classes of training; other classes have none')
        if checkpoint is not None:
            self._config['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint)
        if self._known and self.classes is not None:
            self._check_tower()
        self.classes, self.num_classes = classes, len(classes)
        self.start_texts()

    def _check_tower(self) -> None:
        """Compute the texts of the training again: new ones must come from the same tower."""
        if self.text is not None:
            ids, _ = self.text.tokenize(self._texts(self.templates[0]))
            if torch.equal(self.text_ids[:, : ids.shape[1]].cpu(), ids):
                return
            raise UserError(
                f'model.{self._key}.text.tokenizer ({self.text.tokenizer.source}) does not give '
                'the tokens that the classes had in training: use the one of then')
        tower = self.build_tower()
        again = self.embed_texts(tower, self.templates).to(self.class_vectors)
        # Other machines and half precision move a cosine by less, other weights by more.
        if (again * self.class_vectors).sum(-1).min() < 0.999:
            raise UserError(
                f'model.{self._key}.text does not give the embeddings of the classes of training, '
                'so that those of others would not fit: its weights '
                f"({self._config['init_cfg'].get('checkpoint')}), tokenizer or quick_gelu are "
                'others, or words that were learnt have become constants (delta fold): use the '
                'file of then, or the checkpoint before it was folded')

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
            if not self._known and not isinstance(self.class_vectors, FakeTensor):
                raise self._unknown()
            return self.class_vectors if labels is None else self.class_vectors[list(labels)]
        if self.text.prompt is not None and self.text.prompt.reads_image:
            if torch.compiler.is_compiling():  # of a graph, where a loop would settle how many
                return self._encode(labels, images).unflatten(0, (images.shape[0], -1))
            # One image after the other: all texts at once would be too many.
            return torch.stack([self._encode(labels, image) for image in images])
        if self.training or torch.is_grad_enabled():
            return self._encode(labels)
        trained = [parameter for name, parameter in self.text.named_parameters()
                   if name not in self.text.frozen_names]  # fmt: skip
        state = [*trained, self.text_ids]
        kept = self._kept
        labels = None if labels is None else list(labels)
        kind = labels, torch.is_autocast_enabled(self.text_ids.device.type)
        same = kept is not None and kept[0] == kind and all(
            old.dtype == new.dtype and old.device == new.device and torch.equal(old, new)
            for old, new in zip(kept[1], state, strict=True))
        if not same:
            self._kept = kept = (
                kind, [each.detach().clone() for each in state], self._encode(labels))
        return kept[2]

    def _unknown(self) -> UserError:
        return UserError(
            f'{self._key}: the texts of the classes are not known: train the model, load a '
            'checkpoint, or call init_weights()')

    def _encode(self, labels: Sequence[int] | None, image: Tensor | None = None) -> Tensor:
        ids, ends = self.text_ids, self.text_ends
        if labels is not None:
            ids, ends = ids[list(labels)], ends[list(labels)]
        prompt, last = self.text.prompt, self._longest
        if last is None:
            if not isinstance(ends, FakeTensor):  # of an estimate, which has no numbers
                raise self._unknown()
            last = self.text.tokenize(self._texts(self.templates[0]))[0].shape[1] - 1
        behind = 0 if prompt is None else prompt.least_words
        found = self.text(ids[:, : 1 + max(last, behind)], ends, image)
        found = F.normalize(whole(found), dim=-1)
        return found[:, None] if self._each else found


def share_weights(backbone: Any, head: Any) -> Any:
    """The config of a head whose text tower has the weights of the backbone if it names none.

    Raises:
        ValueError: If the towers of one file differ in ``quick_gelu``; the text tower takes the
            backbone's if it says nothing.
    """
    weights = backbone.get('init_cfg') if isinstance(backbone, dict) else None
    text = head.get('text') if isinstance(head, dict) else None
    if not (isinstance(weights, dict) and isinstance(text, dict)) or 'init_cfg' in text:
        return head
    start = dict(type='Pretrained', checkpoint=weights.get('checkpoint'))
    quick = backbone.get('quick_gelu', True)
    if text.get('quick_gelu', quick) != quick:
        raise ValueError(
            f'model.backbone.quick_gelu is {quick}, that of the text tower is not, but both come '
            'from one file: set it in model.backbone alone')
    return {**head, 'text': {**text, 'init_cfg': start, 'quick_gelu': quick}}


def fill_in(prompt: Any, served: dict[str, Any], key: str) -> dict[str, Any]:
    """The config of a prompt with what its model knows.

    Args:
        prompt: The config.
        served: What is known; the prompt's class says what it takes of that.
        key: Of the prompt, for messages.

    Raises:
        ValueError: If the config says one of these itself, which would change nothing or be wrong.
    """
    wanted = getattr(find(prompt['type']), 'fills', ())
    for name in wanted:
        if name in prompt:
            raise ValueError(
                f'{key}.{name} is {prompt[name]!r}, but follows from the rest of the model: leave '
                'it out')
    return {**{k: v for k, v in served.items() if k in wanted}, **prompt}


def refuse_others(head: nn.Module, kwargs: dict[str, Any]) -> None:
    """Refuse arguments of mmseg's heads that a head of texts has no use for.

    Raises:
        ValueError: If there is one.
    """
    for name in kwargs:
        if name not in ('ignore_index', 'align_corners', 'init_cfg'):
            raise ValueError(
                f'decode_head.{name} would change nothing: {type(head).__name__} has losses and '
                'layers of its own; leave it out')


def whole(x: Tensor) -> Tensor:
    """In float32, what is in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


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
        ValueError: If they are no names, not as many as ``number``, one is empty, or two are the
            same as a text: in which '_' is a blank, and letters are small.
    """
    if not is_list(classes) or not all(
            isinstance(name, str) and as_text(name) for name in classes):
        raise ValueError(f'{key} must be a list of names, found {classes!r}')
    if len(classes) != number:
        raise ValueError(f'{key} are {len(classes)} names, the data have {number} classes')
    texts: dict[str, str] = {}
    for name in classes:
        text = as_text(name)
        other = texts.get(text)
        if other is not None:
            raise ValueError(
                f'{key}: {name!r} is there twice' if other == name else
                f'{key}: {other!r} and {name!r} are one text, nothing could tell them apart; say '
                'other words for one of them (head.classes)')
        texts[text] = name
    return list(classes)


def as_text(name: str) -> str:
    """The name of a class as tokenizers see it."""
    return ' '.join(name.replace('_', ' ').lower().split())


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
