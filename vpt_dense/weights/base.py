"""The frozen part of a backbone: known by a fingerprint, rebuilt where a state dict leaves it out.

A state dict may lack the frozen tensors of a backbone and hold ``frozen_base`` instead, a few
hundred bytes that say where they come from and what their SHA-256 is. A backbone of class
:class:`FrozenBase` fills them in by itself when such a state dict is loaded into it, however that
happens: by our runner, by mmengine's ``load_checkpoint``, by EMA or by an inferencer.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpt_dense import logging
from vpt_dense.errors import UserError
from vpt_dense.tuning import is_added
from vpt_dense.weights import pretrained
from vpt_dense.weights.pretrained import Converted

#: The name, below the backbone's own prefix, of what a state dict holds for its frozen tensors.
KEY = 'frozen_base'


@dataclasses.dataclass(frozen=True)
class Base:
    """The source of a backbone's frozen tensors.

    Attributes:
        checkpoint: The pretrained weights as the config names them.
        layout: Their format, as :mod:`vpt_dense.weights.layouts` names it.
        sha256: :func:`fingerprint` of the frozen tensors, as converted for this backbone.
        tensors: How many they are.
        parameters: How many numbers they hold.
        arch: The backbone, for messages.
        path: The absolute path of a local checkpoint; empty: an address, or not told.
        keys: Further keys of ``init_cfg`` that they were loaded with (``allow_missing``, ...).
    """

    checkpoint: str
    layout: str
    sha256: str
    tensors: int
    parameters: int
    arch: str
    path: str = ''
    keys: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_tensor(self) -> Tensor:
        """As bytes, uint8 (n,): JSON, which a state dict can hold."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> 'Base':
        """The reverse of :meth:`to_tensor`.

        Raises:
            UserError: If the bytes are something else.
        """
        try:
            return cls.from_dict(json.loads(bytes(tensor.tolist()).decode()))
        except (TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise _unreadable(type(error).__name__) from error

    @classmethod
    def from_dict(cls, fields: Any) -> 'Base':
        """The reverse of :func:`dataclasses.asdict`.

        Raises:
            UserError: If fields are missing, unknown or of other types.
        """
        try:
            base = cls(**fields)
        except TypeError as error:
            raise _unreadable('fields') from error
        kinds = dict(tensors=int, parameters=int, keys=dict)
        for field in dataclasses.fields(cls):
            if not isinstance(getattr(base, field.name), kinds.get(field.name, str)):
                raise _unreadable(field.name)
        return base

    def without_path(self) -> 'Base':
        """For files that leave this machine."""
        return dataclasses.replace(self, path='')


def _unreadable(reason: str) -> UserError:
    return UserError(
        f'the weights hold a {KEY} that cannot be read ({reason}): they are damaged or of a later '
        'version of vpt_dense'
    )


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors in the order of their names: name, shape, float32 little-endian bytes.

    Returns:
        64 hexadecimal digits.
    """
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to('cpu', torch.float32).contiguous()
        sha256.update(f'{name} {tuple(tensor.shape)}\n'.encode())
        sha256.update(tensor.reshape(-1).numpy().astype('<f4', copy=False))
    return sha256.hexdigest()


class FrozenBase:
    """A backbone that completes state dicts from which its frozen tensors were left out.

    To be listed before the backbone's class among the parents. The class calls
    :meth:`note_frozen` when it has frozen what does not train.

    Attributes:
        base: Where the frozen tensors come from; None: not known, they cannot be left out.
        frozen_names: Names of the parameters that do not train, and of the saved buffers of modules
            in which nothing trains; without those of prompts and adapters.
    """

    base: Base | None = None
    frozen_names: frozenset[str] = frozenset()
    #: The frozen tensors that the base gives: all but those it was allowed to lack.
    _rebuilt: frozenset[str] = frozenset()
    #: Their fingerprint as they are held, which may be in half precision.
    _held: str | None = None

    def note_frozen(self) -> None:
        """Find out what is frozen. Later changes of ``requires_grad`` (EMA's) do not count."""
        names = {name for name, p in self.named_parameters() if not p.requires_grad}
        if names:
            for prefix, module in self.named_modules():
                if not any(p.requires_grad for p in module.parameters(recurse=False)):
                    own = {name for name, _ in module.named_buffers(recurse=False)}
                    names |= {
                        f'{prefix}.{name}' if prefix else name
                        for name in own - module._non_persistent_buffers_set
                    }
        self.frozen_names = frozenset(n for n in names if not is_added(n))

    def init_weights(self) -> None:
        """Load the pretrained weights that ``init_cfg`` names, or start at random."""
        if self._init_keys().get('type') == 'Pretrained':
            self.load_base(self.init_cfg['checkpoint'])
            self._is_init = True
        else:
            super().init_weights()

    def load_base(self, checkpoint: str, keys: dict | None = None) -> str:
        """Load pretrained weights and remember them as the base: the one way they come in.

        Args:
            checkpoint: As ``init_cfg.checkpoint``.
            keys: Further keys, in place of those of ``init_cfg``.

        Returns:
            What was done with which tensors, one line; it is logged too.

        Raises:
            UserError: If they are absent, damaged or do not fit; the backbone is then unchanged.
        """
        converted = pretrained.compute(self, checkpoint, keys)
        self.load_state_dict({**self.state_dict(), **converted.tensors})
        logging.tell(converted.report)
        keys = {
            key: list(value) if isinstance(value, (list, tuple)) else value
            for key, value in (self._init_keys() if keys is None else keys).items()
            if key in ('prefix', 'allow_missing', 'source_grid', 'bands')
        }
        self._remember(checkpoint, converted, self.frozen_names, keys)
        return converted.report

    def rebuilt_names(self, state_dict: Mapping[str, Tensor], prefix: str) -> frozenset[str] | None:
        """Names of the frozen tensors in a state dict of this backbone that ``base`` gives.

        Args:
            state_dict: Holds them all.
            prefix: Of this backbone's names there; not part of what is returned.

        Returns:
            The names; None: at least one has changed since.
        """
        frozen = {name: state_dict[prefix + name] for name in self._rebuilt}
        return self._rebuilt if fingerprint(frozen) == self._held else None

    def complete(self, state_dict: dict[str, Tensor], prefix: str = '') -> None:
        """Fill in frozen tensors that a state dict leaves out, in place.

        They are this backbone's own if it holds the right ones; else they are computed from
        ``init_cfg.checkpoint``; if that is absent, from where the state dict says.

        Args:
            state_dict: ``{prefix}frozen_base`` is taken out of it.
            prefix: Of this backbone's names in the state dict.

        Raises:
            UserError: If the base is absent or has another fingerprint, or if frozen tensors are
                missing, the state dict does not say where they come from and this backbone has
                loaded none: it would be tested on random numbers.
        """
        record = state_dict.pop(prefix + KEY, None)
        own = self.state_dict()
        lacking = [
            name for name in own
            if prefix + name not in state_dict and not is_added(name)
        ]
        if record is None:
            bare = [name for name in lacking if name in self.frozen_names]
            if bare and self.base is None:
                raise UserError(
                    f'the weights lack {len(bare)} frozen tensors of the backbone ({bare[0]}, ...) '
                    'and do not say which pretrained weights they belong to: it would stay at its '
                    'random start; load a whole checkpoint or one written by vpt_dense'
                )
            return
        if not lacking:
            return
        base = Base.from_tensor(record)
        if self.base is not None:
            tensors = {name: own[name] for name in lacking}
            found = fingerprint(tensors)
            same = (set(lacking), self.base.sha256) == (self._rebuilt, base.sha256)
            if found == base.sha256 or (same and found == self._held):
                state_dict.update({prefix + name: t for name, t in tensors.items()})
                return
        source = self._find_base(base)
        converted = pretrained.compute(self, source, base.keys)
        rebuilt = self._pick(converted, lacking)
        found = fingerprint(rebuilt)
        if found != base.sha256:
            arch = self.describe()
            other = '' if arch == base.arch else f'; made for {base.arch}, this is {arch}'
            raise UserError(
                f'the pretrained weights {source} are not those that it was trained on: the '
                f'SHA-256 of their {len(rebuilt)} frozen tensors is {found}, but it needs '
                f'{base.sha256} ({base.checkpoint}, {base.tensors} tensors){other}; name the '
                'right file with --base or model.backbone.init_cfg.checkpoint'
            )
        state_dict.update({prefix + name: tensor for name, tensor in rebuilt.items()})
        if self.frozen_names.issuperset(rebuilt):
            self._remember(source, converted, rebuilt, base.keys)

    def describe(self) -> str:
        """The backbone in a few words: class, width, and the grid of patches it was made for."""
        rows, columns = self.patch_embed.init_out_size
        return f'{type(self).__name__} of width {self.embed_dims} on {rows}x{columns} patches'

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # Not a registered hook: this comes before those of the parent, which resize embeddings.
        self.complete(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _remember(
        self, checkpoint: str, converted: Converted, names: Iterable[str], keys: dict
    ) -> None:
        """Set ``base``, whose tensors are those of ``names`` that the weights give."""
        frozen = self._pick(converted, names)
        if not frozen:
            self.base, self._held, self._rebuilt = None, None, frozenset()
            return
        file = Path(checkpoint).expanduser()
        self.base = Base(
            checkpoint=checkpoint,
            layout=converted.layout,
            sha256=fingerprint(frozen),
            tensors=len(frozen),
            parameters=sum(tensor.numel() for tensor in frozen.values()),
            arch=self.describe(),
            path=str(file.resolve()) if file.is_file() else '',
            keys=keys,
        )
        self._rebuilt = frozenset(frozen)
        own = self.state_dict()
        held = {name: tensor.to(own[name].dtype) for name, tensor in frozen.items()}
        rounded = any(tensor.dtype != frozen[name].dtype for name, tensor in held.items())
        self._held = fingerprint(held) if rounded else self.base.sha256

    def _pick(self, converted: Converted, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of some tensors that pretrained weights give, the same on every machine.

        Buffers that no weights hold (tables of indices) are the same in every such backbone.
        """
        known = {**dict(self.named_buffers()), **converted.tensors}
        return {
            name: known[name] for name in names if name in known and name not in converted.inexact
        }

    def _init_keys(self) -> dict:
        """``init_cfg``, if it is not the list of random starts that some classes have."""
        return self.init_cfg if isinstance(self.init_cfg, dict) else {}

    def _find_base(self, base: Base) -> str:
        """The first of config and record whose weights are there."""
        configured = self._init_keys().get('checkpoint')
        places = list(dict.fromkeys(p for p in (configured, base.checkpoint, base.path) if p))
        for place in places:
            if is_address(place) or Path(place).expanduser().is_file():
                return place
        raise UserError(
            'it holds only what was trained, and the pretrained weights that it builds on are '
            f'neither in {" nor in ".join(places)} (from {Path.cwd()}); say where they are '
            'with --base PATH or model.backbone.init_cfg.checkpoint'
        )


def is_address(checkpoint: str) -> bool:
    """Whether pretrained weights are named by an address rather than by a local path."""
    return '://' in checkpoint or checkpoint.startswith(('hf-hub:', 'hf_hub:'))


def frozen_bases(model: nn.Module) -> Iterator[tuple[str, FrozenBase]]:
    """The backbones of a model that complete state dicts, with the prefixes of their names."""
    for name, module in model.named_modules():
        if isinstance(module, FrozenBase):
            yield f'{name}.' if name else '', module
