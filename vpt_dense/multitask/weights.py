"""The frozen tensors of a backbone that all tasks share."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from vpt_dense.errors import UserError
from vpt_dense.tuning import is_added
from vpt_dense.weights.base import KEY, Base, FrozenBase, fingerprint

#: Names of position embeddings, which follow from the weights and the size of the images.
_POSITIONS = re.compile('pos(ition)?_embed')


class Frozen:
    """The tensors of a frozen backbone; each is in memory once, whatever is put on it.

    Args:
        tensors: Name in the backbone -> tensor, in the order of the backbone.
        told: What the backbone is, for messages.

    Attributes:
        places: Storage of a tensor -> its place in the order of the backbone.
        is_half: Whether some are float16 or bfloat16, which may be cast where they are used.
    """

    def __init__(self, tensors: Mapping[str, Tensor], told: str) -> None:
        self.tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self.told = told
        self._digests: dict[frozenset[str], str] = {}
        self._note()

    @classmethod
    def of(cls, backbone: nn.Module, told: str, device: torch.device | str) -> 'Frozen':
        """Those of a backbone, tuned or not, without what tuning added; a copy only elsewhere."""
        state = backbone.state_dict()
        return cls({name: tensor.to(device) for name, tensor in state.items()
                    if not is_added(name) and name != KEY}, told)

    def _note(self) -> None:
        self.places = {
            tensor.untyped_storage().data_ptr(): i for i, tensor in enumerate(self.tensors.values())
            if tensor.is_floating_point() and tensor.ndim > 1}
        halves = (torch.float16, torch.bfloat16)
        self.is_half = any(tensor.dtype in halves for tensor in self.tensors.values())
        self._pointers = {t.untyped_storage().data_ptr() for t in self.tensors.values()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """The type that the backbone is held in."""
        return next(t.dtype for t in self.tensors.values() if t.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(iter(self.tensors.values())).device

    @property
    def channels(self) -> int:
        """Channels of the images that it takes: those of its first convolution."""
        return next((t.shape[1] for t in self.tensors.values() if t.ndim == 4), 3)

    def has(self, shapes: Mapping[str, torch.Size]) -> bool:
        """Whether tensors of these names and shapes are all there."""
        return all(
            name in self.tensors and self.tensors[name].shape == shape
            for name, shape in shapes.items())

    def check(self, names: Iterable[str], base: Base, whose: str) -> None:
        """Refuse what was tuned on other weights.

        Args:
            names: Of the frozen tensors that it needs.
            base: What its file says of them.
            whose: Of what, for the message.

        Raises:
            UserError: If it was.
        """
        names = frozenset(names)
        if names not in self._digests:
            self._digests[names] = fingerprint({name: self.tensors[name] for name in names})
        found = self._digests[names]
        if found != base.sha256:
            raise UserError(
                f'{whose} was tuned on other weights ({base.checkpoint or base.arch}): the SHA-256 '
                f'of its {len(names)} frozen tensors is {base.sha256}, those of this backbone '
                f'({self.told}) have {found}; give it a MultiTask of its own')

    def adopt(self, backbone: FrozenBase, names: Iterable[str], base: Base, whose: str) -> None:
        """Put a backbone that has all of its weights on the shared ones.

        What is not there yet (a norm that other tasks do not have) stays its own, and so do
        positions for images of another size, or that were resized in another way.

        Args:
            backbone: With the weights that its file needs.
            names: Of its frozen tensors.
            base: What its file says of them.
            whose: Of what, for the message.

        Raises:
            UserError: If its weights are others.
        """
        own = backbone.state_dict()
        shared = {name: self.tensors[name] for name in names
                  if name in self.tensors and self.tensors[name].shape == own[name].shape}
        others = {
            name for name, tensor in shared.items()
            if not torch.equal(own[name], tensor.to(own[name].device, own[name].dtype))}
        if len(others) == len(shared) or not all(_POSITIONS.search(name) for name in others):
            raise UserError(
                f'{whose} was tuned on other weights ({base.checkpoint or base.arch}) than those '
                f'of this backbone ({self.told}); give it a MultiTask of its own')
        shared = {name: tensor for name, tensor in shared.items() if name not in others}
        backbone.load_state_dict({**own, **shared}, assign=True)

    def is_shared(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of these."""
        return tensor.untyped_storage().data_ptr() in self._pointers
