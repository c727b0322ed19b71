"""The frozen tensors of a backbone that all tasks share, and models that are put on them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vpt_dense.errors import UserError
from vpt_dense.tuning import is_added
from vpt_dense.weights.base import KEY, Base, FrozenBase, fingerprint


class Frozen:
    """The tensors of a frozen backbone; each is in memory once, whatever is put on it.

    Args:
        tensors: Name in the backbone -> tensor, in the order of the backbone.
        told: What the backbone is, for messages.

    Attributes:
        places: Storage of a tensor -> its place in the order of the backbone.
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

        What is not there yet (a norm that other tasks do not have; positions for images of another
        size) stays its own.

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
        same = shared and all(
            torch.equal(own[name].to(t.device, t.dtype), t) for name, t in shared.items())
        if not same:
            raise UserError(
                f'{whose} was tuned on other weights ({base.checkpoint or base.arch}) than those '
                f'of this backbone ({self.told}); give it a MultiTask of its own')
        backbone.load_state_dict({**own, **shared}, assign=True)

    def is_shared(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of these."""
        return tensor.untyped_storage().data_ptr() in self._pointers

def build(
    function: Callable[[], nn.Module], state: Mapping[str, Tensor], skeleton: nn.Module
) -> nn.Module:
    """Build a model around tensors that are there, which are not copied.

    Args:
        function: Builds it.
        state: All of its parameters and saved buffers.
        skeleton: It, built :func:`without_weights`.

    Returns:
        In eval mode.

    Raises:
        ValueError: If names or shapes differ from those of the model.
    """
    model = skeleton
    _fill(model, state)
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        model = function()  # something is computed from weights where it is built
        _fill(model, state)
    return model.eval()


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    wanted = model.state_dict()
    lacking = [n for n in wanted if n not in state and not n.endswith('num_batches_tracked')]
    more = [name for name in state if name not in wanted]
    others = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    for names, what in ((lacking, 'lacks'), (more, 'has too many:'), (others, 'has other shapes:')):
        if names:
            raise ValueError(f'it {what} {names[0]}{", ..." if names[1:] else ""}')
    model.load_state_dict(state, strict=False, assign=True)


@contextmanager
def without_weights() -> Iterator[None]:
    """Within it modules are built without memory for their parameters; buffers are real."""
    register = nn.Module.register_parameter

    def without(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to('meta'), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = without
    try:
        with _NoNumbers():
            yield
    finally:
        nn.Module.register_parameter = register


class _NoNumbers(TorchFunctionMode):
    """Starts nothing at random that has no memory, which would take time and give nothing."""

    _skipped = frozenset({
        torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_, torch.Tensor.clamp_})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self._skipped and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))
