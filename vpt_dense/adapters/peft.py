"""Layers of Hugging Face's PEFT on the linear layers of a backbone."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from vpt_dense.adapters.base import find_linears
from vpt_dense.adapters.updates import LinearUpdates, Rows, RowsChange
from vpt_dense.errors import UserError, suggest
from vpt_dense.parts import register

#: Kinds of PEFT that act on one linear layer each and hold all that they need: tested one by one.
KINDS = ('BOFT', 'DELORA', 'GRALORA', 'HIRA', 'HRA', 'IA3', 'LOHA', 'LOKR', 'LORA', 'MISS', 'OFT')
#: Some others -> what to take instead.
_INSTEAD = {
    'GLORA': 'vpt_dense.GLoRA', 'VERA': 'vpt_dense.VeRA', 'PREFIX_TUNING': 'vpt_dense.PrefixPrompt',
}  # fmt: skip
#: Keys of PEFT's configs that choose layers, or train something of the backbone -> the way out.
_REFUSED = dict(
    target_modules='adapters.targets names the layers',
    exclude_modules='adapters.targets names the layers',
    layers_to_transform='adapters.targets names the layers',
    layers_pattern='adapters.targets names the layers',
    target_parameters='adapters.targets names the layers',
    modules_to_save='heads train always, other modules by trainable',
    trainable_token_indices='leave it out',
    layer_replication='leave it out',
    inference_mode='trainable says what trains',
)
#: Values of ``init_lora_weights`` that leave the backbone's weights alone and need no data.
_STARTS = (True, False, 'gaussian', 'orthogonal')


@register
class PEFT(LinearUpdates):
    r"""A tuner of Hugging Face's PEFT (https://github.com/huggingface/peft) on linear layers.

    The formulas are PEFT's: its own layers compute and merge. The backbone keeps its layers and
    their names; checkpoints, deltas, heads and ``trainable`` are as with every adapter. What starts
    from the weights (the magnitude of DoRA, the norms of DeLoRA) starts when the backbone has
    loaded them (``init_cfg``, :func:`vpt_dense.tune`).

    It acts on what the weights of a layer give: other adapters of the same layer come after it. It
    needs the package: ``pip install vpt_dense[peft]``.

    Args:
        config: ``peft_type`` and what PEFT's config of that type takes, but for keys that choose
            layers: ``dict(peft_type='LOHA', r=4)``. In that of IA3, ``feedforward_modules`` are
            patterns as ``targets``.
        targets: As in :class:`LoRA`.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        UserError: If PEFT is not installed.
        ValueError: If a type cannot be used so, an argument is out of its range or a pattern
            matches no linear layer.
    """

    reads_weights = True

    def __init__(
        self,
        backbone: nn.Module,
        config: Mapping[str, Any] | None = None,
        targets: Sequence[str] = (r'\.qkv$',),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        linears = find_linears(backbone, targets)
        self.config = _checked(config, backbone, linears)
        layers = self._layers(linears)
        self.attach(
            [Rows(name, linear, 0, linear.out_features) for name, linear in linears.items()],
            lambda rows: Wrapped(layers[rows.name]))

    def start_from(self, backbone: nn.Module) -> None:
        """See :meth:`vpt_dense.prompts.Part.start_from`."""
        layers = self._layers({name: backbone.get_submodule(name) for name in self.names})
        for name, update in zip(self.names, self.updates, strict=True):
            update.layer.load_state_dict(layers[name].state_dict())

    def _layers(self, linears: Mapping[str, nn.Linear]) -> dict[str, nn.Module]:
        """PEFT's layers, as they start: name -> layer."""
        peft = _peft()
        tree = nn.Module()  # of the backbone's names
        weight = next(iter(linears.values())).weight
        if isinstance(weight, FakeTensor):
            raise UserError(
                'PEFT moves its layers to a device, which tensors without memory do not allow: '
                'memory cannot be estimated with vpt_dense.PEFT')
        # PEFT asks the first parameter of a model for its device.
        tree.place = nn.Parameter(torch.empty(0, device=weight.device))
        for name, linear in linears.items():
            *path, last = name.split('.')
            place = tree
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]
            place.add_module(last, StandIn(linear))
        kind, further = self.config['peft_type'], dict(self.config, target_modules=[*linears])
        del further['peft_type']
        try:
            # Some kinds look into tensors that they make; PEFT moves all to the weights' device.
            with torch.device('cpu'):
                peft.inject_adapter_in_model(
                    peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind](**further), tree)
        except (ValueError, TypeError, AssertionError, RuntimeError) as error:
            raise ValueError(f'adapters.config: {" ".join(str(error).split())}') from error
        return {name: tree.get_submodule(name) for name in linears}

    def _merge(self, backbone: nn.Module) -> None:
        """See :meth:`.Adapter.merge`."""
        for update in self.updates:
            update.layer.merge()
            update.handle.remove()


def _peft() -> ModuleType:
    """The package."""
    try:
        import peft
    except ImportError as error:
        raise UserError('vpt_dense.PEFT needs peft: pip install vpt_dense[peft]') from error
    return peft


def _checked(
    config: Mapping[str, Any] | None, backbone: nn.Module, linears: Mapping[str, nn.Linear]
) -> dict[str, Any]:
    """A config of PEFT without what it cannot say here."""
    if not isinstance(config, Mapping) or not isinstance(config.get('peft_type'), str):
        raise ValueError(
            "adapters.config needs a dict with PEFT's peft_type, dict(peft_type='LORA', r=8), "
            f'found {config!r}')
    known = _peft().PEFT_TYPE_TO_CONFIG_MAPPING
    kind = config['peft_type']
    if kind not in KINDS or kind not in known:
        there = [each for each in KINDS if each in known]
        instead = f'; use {_INSTEAD[kind]}' if kind in _INSTEAD else suggest(kind, there)
        raise ValueError(
            f'adapters.config.peft_type={kind!r} cannot be used here{instead} '
            f'(known: {", ".join(there)})')
    for key, way_out in _REFUSED.items():
        if config.get(key):
            raise ValueError(f'adapters.config.{key}={config[key]!r} says nothing here; {way_out}')
    if config.get('bias', 'none') != 'none':
        raise ValueError(
            f"adapters.config.bias={config['bias']!r} trains biases of the backbone; use trainable")
    start = config.get('init_lora_weights', True)
    if start not in _STARTS:
        raise ValueError(
            f"adapters.config.init_lora_weights={start!r} changes the backbone's weights or needs "
            'data; vpt_dense.PiSSA starts so and leaves them alone')
    found = {key: value for key, value in config.items() if key not in _REFUSED}
    if kind == 'IA3':
        wanted = config.get('feedforward_modules') or []
        matched = find_linears(backbone, wanted, 'adapters.config.feedforward_modules') if (
            wanted) else {}
        found['feedforward_modules'] = [name for name in matched if name in linears]
    return found


class StandIn(nn.Linear):
    """Takes the place of a linear layer inside of one of PEFT's; has no weights of its own."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # In a tuple, where it is no submodule: its parameters have one name.
        self.own = (linear,)

    @property
    def weight(self) -> Tensor:
        """The layer's; in full precision, which PEFT computes norms in."""
        weight = self.own[0].weight
        return weight.float() if weight.dtype.itemsize < 4 else weight

    @property
    def bias(self) -> Tensor | None:
        """The layer's."""
        return self.own[0].bias

    def forward(self, x: Tensor, given: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The layer's outputs; those that are there already, for the inputs that they are of."""
        return given[1] if given is not None and given[0] is x else self.own[0].forward(x)


class Wrapped(RowsChange):
    """A layer of PEFT around a layer of the backbone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def change(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of the linear layer."""
        # PEFT's layers hand further arguments to the layer that they are around.
        return self.layer(args[0], given=(args[0], output)).to(output.dtype)
