"""One format of pretrained weights: a row of tables, no code."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor


class Layout(NamedTuple):
    """One format of pretrained weights, as tables.

    **Templates.** ``signature`` and both sides of ``rules`` are templates of names: ``*`` is a
    number, the same numbers in the same order on both sides (with fewer on the right, the last
    ones); a template that ends in a dot is the start of a name and the rest of the name is kept;
    any other template is a whole name::

        ('blocks.*.norm1.', 'layers.*.ln1.')  # blocks.7.norm1.bias -> layers.7.ln1.bias
        ('reg_token', 'register_tokens')

    The first rule that matches counts; a name that none matches is kept. Two marks are allowed on
    the right side, the names of the target:

    - ``#k``: part k of a tensor that the target holds in one piece; the parts are joined along
      the first axis in the order of k: ``('attention.query.', 'layers.*.attn.qkv#0.')``;
    - ``a|b``: the first of these that the target has, for what the target names by its kind:
      ``('blocks.*.mlp.fc1.', 'layers.*.ffn.layers.0.0.|layers.*.ffn.w12.')``.

    **Where the backbone is.** Whatever comes before the signature, nothing or up to a dot
    (``module.``, ``backbone.``, ``visual.``), is taken off all names; tensors elsewhere are
    ignored. All other fields see names without it, but ``marks`` sees the names in the file.

    Attributes:
        name: The format, as reports and errors name it.
        signature: Template of a tensor that every block has in this format.
        rules: (template of the format, template of the target) pairs. The target's names are
            mmpretrain's: ``layers.*.attn.qkv.weight`` for 'vit', ``stages.*.blocks.*`` for 'swin'.
        ignored: Regular expressions, searched in the format's names: what no backbone has
            (heads, decoders, mask tokens).
        marks: Regular expressions; each must be found in a name of the file too, to tell formats
            with the same signature apart. Formats are tried in the order of ``LAYOUTS``.
        transforms: (regular expression, searched in the format's names; function of the tensor)
            pairs, for another order of axes or another shape. Applied before parts are joined.
        zeros: Names of the target that are zero in the format's own model where the file lacks
            them (no patch bias, say).
        family: Which backbones take it: 'vit', 'clip_text', 'eva02', 'swin', 'resnet', 'convnext'
            or 'timm' (their ``weights_family``).
        own_family_alone: Whether it is looked for where the backbone is of its family alone, as
            another family has the same names.
        refused: Why this format cannot be loaded; empty: it can.
    """

    name: str
    signature: str
    rules: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    transforms: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = ()
    zeros: tuple[str, ...] = ()
    family: str = 'vit'
    own_family_alone: bool = False
    refused: str = ''

    def prefixes(self, names: Iterable[str]) -> list[str]:
        """Find where backbones of this format begin.

        Args:
            names: The names in the file.

        Returns:
            What comes before the signature, each once, sorted; empty: not this format.
        """
        names = list(names)
        if not all(any(re.search(mark, name) for name in names) for mark in self.marks):
            return []
        pattern = re.compile(rf'(|.*\.){_pattern(self.signature)}')
        return sorted({match[1] for name in names if (match := pattern.fullmatch(name))})

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor of the format belongs to no backbone."""
        return any(re.search(pattern, name) for pattern in self.ignored)

    def to_target(self, name: str, target: Iterable[str] = ()) -> tuple[str, int | None]:
        """Turn a name of the format into the target's.

        Args:
            name: The name in the file, without what comes before the backbone.
            target: The target's names, which decide between alternatives.

        Returns:
            The name, and which part of that tensor it is; None: all of it.
        """
        for left, right in self.rules:
            choices = [_translate(name, left, choice) for choice in right.split('|')]
            if choices[0] is not None:
                new = next((n for n in choices if _without_part(n)[0] in target), choices[0])
                return _without_part(new)
        return name, None

    def transform(self, name: str, tensor: Tensor) -> Tensor:
        """Bring a tensor of the format into the target's order of axes."""
        for pattern, function in self.transforms:
            if re.search(pattern, name):
                tensor = function(tensor)
        return tensor


def _translate(name: str, left: str, right: str) -> str | None:
    """Apply one rule; None: it does not match."""
    match = re.fullmatch(_pattern(left), name)
    if match is None:
        return None
    *numbers, rest = match.groups()
    for number in numbers[len(numbers) - right.count('*') :]:
        right = right.replace('*', number, 1)
    return right + rest


def _pattern(template: str) -> str:
    """A template as a regular expression: a group a number, and a last one for the rest."""
    body = re.escape(template).replace(r'\*', r'(\d+)')
    return body + ('(.*)' if template.endswith('.') else '()')


def _without_part(name: str) -> tuple[str, int | None]:
    """Take the mark ``#k`` off a name or template."""
    match = re.search(r'#(\d)', name)
    return (name.replace(match[0], '', 1), int(match[1])) if match else (name, None)
