"""Models without numbers of their own, which tasks of one structure fill in turn."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from vpt_dense.backbones.token_tuning import TokenTuning
from vpt_dense.backbones.tuned import TunedBackbone
from vpt_dense.multitask import lockstep
from vpt_dense.multitask.prefix import Prefix, first_block
from vpt_dense.multitask.weights import Frozen
from vpt_dense.tuning import is_added


class Structure:
    """What models of one config have in common, and as many of them as run at the same time.

    Of a task that does not run there are only its tensors. To run, it is lent a model, on the
    shared weights, and fills in its own.

    Args:
        model: The first one, on the shared weights, with the tensors of a task in it.
        prefix: Of its backbone's names.
        frozen: The shared weights.
        build: Builds another, without memory for parameters; None: there is but this one, with its
            tensors in it.

    Attributes:
        own: Names of the backbone's tensors that are a task's own, without what tuning added.
        names: Names of all tensors of the model that are.
        depth: How many blocks a task does not change; 0: not known, or there are no blocks.
        shared: Name in the model -> shared tensor.
        own_layers: Names of linear layers and convolutions of the backbone whose weights are own.
    """

    def __init__(
        self, model: nn.Module, prefix: str, frozen: Frozen,
        build: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.prefix, self._frozen, self._build = prefix, frozen, build
        self._lock = threading.Lock()
        self.backbone = self.backbone_of(model)
        state = self.backbone.state_dict(keep_vars=True)
        shared = {name for name, tensor in state.items() if not is_added(name)
                  and name in frozen.tensors and frozen.is_shared(tensor)}
        self.own = frozenset(name for name in state if not is_added(name) and name not in shared)
        self.shared = {prefix + name: frozen.tensors[name] for name in shared}
        self.names = tuple(name for name in model.state_dict() if name not in self.shared)
        self.own_layers = tuple(
            name for name, module in self.backbone.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d)) and f'{name}.weight' in self.own)
        self.depth = 0
        if isinstance(self.backbone, TokenTuning):
            self.depth = first_block(self.backbone, self.own)
        self._prepare(model)
        self._free: list[tuple[object, nn.Module]] = [(None, model)]
        self._lent: dict[object, list] = {}
        #: Whether what is loaded is what the model holds: then it is put there, not loaded.
        self._plain = build is not None and all(
            type(module)._load_from_state_dict is nn.Module._load_from_state_dict
            or isinstance(module, (TunedBackbone, _NormBase)) for module in model.modules())

    def any(self) -> nn.Module:
        """One of its models, to be looked at."""
        return self._free[0][1] if self._free else next(iter(self._lent.values()))[1]

    def backbone_of(self, model: nn.Module) -> TunedBackbone:
        """The backbone of a model of this structure."""
        return model.get_submodule(self.prefix.rstrip('.')) if self.prefix else model

    def _prepare(self, model: nn.Module) -> None:
        """Hold a model as the shared weights are held."""
        model.eval()
        for tensor in (*model.parameters(), *model.buffers()):
            if not self._frozen.is_shared(tensor):
                kind = self._frozen.dtype if tensor.is_floating_point() else tensor.dtype
                tensor.data = tensor.data.to(self._frozen.device, kind)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        backbone = self.backbone_of(model)
        if isinstance(backbone, TokenTuning):
            backbone.feature_cache = Prefix(backbone, self.depth)
        for module in backbone.modules():
            if (type(module) is nn.Conv2d and module.in_channels == self._frozen.channels
                    and module.padding_mode == 'zeros'
                    and self._frozen.is_shared(module.weight)):  # fmt: skip
                module._conv_forward = partial(lockstep.patches, {
                    name: getattr(module, name)
                    for name in ('stride', 'padding', 'dilation', 'groups')})

    @contextmanager
    def lent(self, task: object, tensors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """Lend a model to a task; several passes of one task have the same.

        Args:
            task: Whose.
            tensors: Its own tensors, by their names in the model.
        """
        with self._lock:
            held = self._lent.get(task)
            if held is None:
                held = self._lent[task] = [0, self._take(task, tensors)]
            held[0] += 1
        try:
            yield held[1]
        finally:
            with self._lock:
                held[0] -= 1
                if not held[0]:
                    del self._lent[task]
                    self._free.append((task, held[1]))

    def _take(self, task: object, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A model with a task's tensors in it: that which it had before, another, a new one."""
        if self._build is None:
            return self._free.pop()[1]
        at = next((i for i, (last, _) in enumerate(self._free) if last is task), None)
        if at is not None:
            return self._free.pop(at)[1]
        if self._free:
            _, model = self._free.pop(0)
            self._fill(model, tensors)
            return model
        model = on_shared(self._build, {**self.shared, **tensors})
        self._prepare(model)
        return model

    def _fill(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        if not self._plain:
            model.load_state_dict({**self.shared, **tensors}, assign=True)
            return
        for name, tensor in tensors.items():
            place, _, last = name.rpartition('.')
            owner = model.get_submodule(place)
            if last in owner._parameters:
                owner._parameters[last] = nn.Parameter(tensor, requires_grad=False)
            else:
                owner._buffers[last] = tensor

    def forget(self, task: object) -> None:
        """Let go of a task's tensors, which a model may still hold."""
        with self._lock:
            for i, (last, model) in enumerate(self._free):
                if last is task and self._build is not None:
                    state = model.state_dict()
                    self._fill(model, {name: state[name].to('meta') for name in self.names})
                    self._free[i] = (None, model)


def on_shared(
    build: Callable[[], nn.Module], state: Mapping[str, Tensor], skeleton: nn.Module | None = None
) -> nn.Module:
    """Build a model around tensors that are there, which are not copied.

    Args:
        build: Builds it.
        state: All of its parameters and saved buffers.
        skeleton: It, built :func:`without_weights`; None: it is built here.

    Returns:
        In eval mode.

    Raises:
        ValueError: If names or shapes differ from those of the model.
    """
    if skeleton is None:
        with without_weights():
            skeleton = build()
    model = skeleton
    _load(model, state)
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        model = build()  # something is computed from weights where it is built
        _load(model, state)
    return model.eval()


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    wanted = model.state_dict()
    lacking = [n for n in wanted if n not in state and not n.endswith('num_batches_tracked')]
    more = [name for name in state if name not in wanted]
    others = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    for names, what in ((lacking, 'lacks'), (more, 'has too many:'), (others, 'has other shapes:')):
        if names:
            raise ValueError(f'it {what} {names[0]}{", ..." if names[1:] else ""}')
    model.load_state_dict(state, strict=False, assign=True)


_PATCHING = threading.RLock()


@contextmanager
def without_weights() -> Iterator[None]:
    """Within it modules are built without memory for their parameters; buffers are real."""
    with _PATCHING:
        register = nn.Module.register_parameter
        here = threading.get_ident()

        def without(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
            if parameter is not None and threading.get_ident() == here:
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
