"""Scales and shifts of weights and biases, each of a chosen form: GLoRA."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.adapters.base import check_merge
from vpt_dense.adapters.updates import LinearUpdates, Rows, RowsChange, find_rows
from vpt_dense.argument_checks import check_choice, check_count
from vpt_dense.parts import register

#: The forms that each of A, B, C, D and E may have.
_MATRIX = ('lora', 'vector', 'scalar', 'none')
_COLUMN = ('lora', 'vector', 'none')
_BIAS = ('vector', 'scalar', 'none')


@register
class GLoRA(LinearUpdates):
    r"""GLoRA (Chavan et al., 2023, https://arxiv.org/abs/2306.07967), with forms that are chosen.

    y = (W + W * A + B) x + b + b * D + E + W C,    * number by number.

    A and B (out, in) may be low-rank products ('lora'), a number for each output ('vector'), one
    number ('scalar') or absent ('none'); C (in,) 'lora', 'vector' or 'none'; D and E (out,)
    'vector', 'scalar' or 'none'. The second factors of products start as PyTorch's linear layers
    do, all else at zero: training starts from the backbone's function. Merged, all of it is weights
    and biases.

    The paper draws a form and a rank for each layer and step, and searches the best of them by
    evolution afterwards; here they are what the config says, in all layers. W * A of a product
    costs what the layer costs once more.

    It acts on what the weights of a layer give: other adapters of the same layer come after it.

    Args:
        rank: Of the products, at least 1.
        weight_scale: Form of A.
        weight_shift: Form of B.
        input_shift: Form of C: W C is what it does when it is added to x.
        bias_scale: Form of D; it needs layers with biases. Beside E it adds nothing to what can be
            reached.
        bias_shift: Form of E.
        targets: As in :class:`LoRA`.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range, all forms are 'none', a layer has no bias to
            scale or a pattern matches no linear layer.
    """

    reads_weights = True

    def __init__(
        self,
        backbone: nn.Module,
        rank: int = 4,
        weight_scale: str = 'lora',
        weight_shift: str = 'lora',
        input_shift: str = 'lora',
        bias_scale: str = 'none',
        bias_shift: str = 'vector',
        targets: Sequence[str] = (r'\.qkv$',),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_count(rank, 'adapters.rank')
        forms = dict(
            weight_scale=(weight_scale, _MATRIX), weight_shift=(weight_shift, _MATRIX),
            input_shift=(input_shift, _COLUMN), bias_scale=(bias_scale, _BIAS),
            bias_shift=(bias_shift, _BIAS))
        for key, (form, known) in forms.items():
            check_choice(form, f'adapters.{key}', known)
        chosen = {key: form for key, (form, _) in forms.items() if form != 'none'}
        if not chosen:
            raise ValueError(f"adapters: {', '.join(forms)} of GLoRA are all 'none'; choose one")
        places = find_rows(backbone, targets)
        for rows in places:
            if 'bias_scale' in chosen and rows.linear.bias is None:
                raise ValueError(
                    f'adapters.bias_scale={bias_scale!r}: {rows.name} has no bias to scale; leave '
                    "it 'none'")
        self.shifts = bool(chosen.keys() & {'input_shift', 'bias_scale', 'bias_shift'})
        self.attach(places, lambda rows: General(rows, rank, chosen))

    def check_mergeable(self, backbone: nn.Module) -> None:
        """See :meth:`Adapter.check_mergeable`."""
        check_merge(backbone, self.names, needs_bias=self.shifts)

    def _merge(self, backbone: nn.Module) -> None:
        """See :meth:`.Adapter.merge`."""
        if self.shifts:
            for name, update in zip(self.names, self.updates, strict=True):
                linear = backbone.get_submodule(name)
                bias = linear.bias.double()
                linear.bias.copy_(bias + update.double_shift(linear.weight.double(), bias))
        super()._merge(backbone)


class Form(nn.Module):
    """A matrix (rows, columns) of a form: 'lora', 'vector' (rows, 1) or 'scalar' (1, 1)."""

    def __init__(self, form: str, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        shapes = dict(lora=(rows, rank), vector=(rows, 1), scalar=(1, 1))
        self.up = nn.Parameter(torch.zeros(shapes[form]))
        self.down = None
        if form == 'lora':
            self.down = nn.Parameter(torch.empty(rank, columns))
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, double: bool = False) -> Tensor:
        """The matrix, or what becomes it by broadcasting; if wanted in float64."""
        factors = [each.double() if double else each
                   for each in (self.up, self.down) if each is not None]  # fmt: skip
        return factors[0] if self.down is None else factors[0] @ factors[1]


class General(RowsChange):
    """The change of a layer.

    Args:
        rows: The whole layer.
        rank: Of the products.
        chosen: Forms of ``weight_scale``, ``weight_shift``, ``input_shift``, ``bias_scale`` and
            ``bias_shift``, those that there are.
    """

    def __init__(self, rows: Rows, rank: int, chosen: dict[str, str]) -> None:
        super().__init__()
        out, inputs = rows.linear.out_features, rows.linear.in_features
        sizes = dict(
            weight_scale=(out, inputs), weight_shift=(out, inputs), input_shift=(inputs, 1),
            bias_scale=(out, 1), bias_shift=(out, 1))
        self.forms = nn.ModuleDict({
            key: Form(form, *sizes[key], rank) for key, form in chosen.items()})

    def _weight(self, weight: Tensor, double: bool = False) -> Tensor | None:
        """W * A + B, (out, in) or what becomes it by broadcasting; None: there is neither."""
        parts = []
        if 'weight_scale' in self.forms:
            parts.append(weight * self.forms['weight_scale'](double))
        if 'weight_shift' in self.forms:
            parts.append(self.forms['weight_shift'](double))
        return sum(parts) if parts else None

    def _shift(self, weight: Tensor, bias: Tensor | None, double: bool = False) -> Tensor | None:
        """W C + b * D + E, (out,) or a number; None: there is none of them."""
        parts = []
        if 'input_shift' in self.forms:
            parts.append(F.linear(self.forms['input_shift'](double).flatten(), weight))
        if 'bias_scale' in self.forms:
            parts.append(bias * self.forms['bias_scale'](double).flatten())
        if 'bias_shift' in self.forms:
            parts.append(self.forms['bias_shift'](double).flatten())
        return sum(parts) if parts else None

    def matrix(self, weight: Tensor) -> Tensor:
        """See :meth:`.RowsChange.matrix`."""
        found = self._weight(weight, double=True)
        return torch.zeros_like(weight) if found is None else found.expand_as(weight)

    def double_shift(self, weight: Tensor, bias: Tensor) -> Tensor:
        """What is added to the bias when it is merged, (out,), float64."""
        return self._shift(weight, bias, double=True).expand_as(bias)

    def change(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of the linear layer."""
        weight = self._weight(module.weight)
        shift = self._shift(module.weight, module.bias)
        if weight is not None:
            output = output + F.linear(args[0], weight.expand_as(module.weight))
        return output if shift is None else output + shift.to(output.dtype)
