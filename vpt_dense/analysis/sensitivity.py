"""Which weights the loss depends on most: sensitivity-aware visual tuning (SPT).

He et al., ICCV 2023, https://arxiv.org/abs/2303.08566, section 3: the sensitivity of a weight is
the sum of the squares of its gradients over batches of the new task. The most sensitive weights
train; a matrix that has many of them is updated by LoRA in their place.
"""

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpt_dense.adapters.base import PARTS
from vpt_dense.errors import UserError

#: A layer of queries, keys and values has three units, ('layers.0.attn.qkv', 'q') and so on; any
#: other weight or vector is one, with an empty part.
Unit = tuple[str, str]


@dataclass
class Choice:
    """What trains.

    Attributes:
        low_rank: Matrices that LoRA updates.
        vectors: Names of biases and of weights of norms that train as a whole.
        single: Layer -> places of single weights in its matrix, row after row, int64.
        number: How many parameters train.
        sensitive: How many of the most sensitive weights were looked at for it.
    """

    low_rank: list[Unit] = field(default_factory=list)
    vectors: list[str] = field(default_factory=list)
    single: dict[str, Tensor] = field(default_factory=dict)
    number: int = 0
    sensitive: int = 0


def units(backbone: nn.Module) -> tuple[dict[Unit, nn.Linear], dict[str, nn.Parameter]]:
    """The matrices of a backbone's blocks, and their vectors: biases and weights of norms."""
    names = {module: name for name, module in backbone.named_modules()}
    matrices, vectors = {}, {}
    for block in backbone.block_list():
        for linear in (*block.qkv, block.proj, *block.fc1, block.fc2):
            fused = len(block.qkv) == 1 and linear is block.qkv[0]
            matrices.update({(names[linear], part): linear for part in (PARTS if fused else ('',))})
        for name, parameter in block.module.named_parameters():
            if parameter.ndim == 1:
                vectors[f'{block.name}.{name}'] = parameter
    return matrices, vectors


def measure(model: nn.Module, batches: Iterable[dict]) -> dict[str, Tensor]:
    """Sensitivities of the weights of a model's backbone.

    Args:
        model: All of whose backbone trains. Its gradients are gone afterwards.
        batches: As a data loader makes them, of the training.

    Returns:
        Name of a parameter in the blocks -> the sum over batches of the squares of its gradient, on
        the CPU, float32.

    Raises:
        UserError: If the loss of a batch is not finite.
    """
    backbone = model.backbone
    names = tuple(f'{block.name}.' for block in backbone.block_list())
    watched = {n: p for n, p in backbone.named_parameters() if n.startswith(names)}
    found = {name: torch.zeros(p.shape) for name, p in watched.items()}
    model.train()
    backbone.eval()  # no stochastic depth, as where only a method trains
    for batch in batches:
        model.zero_grad(set_to_none=True)
        data = model.data_preprocessor(copy.copy(batch), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        if not torch.isfinite(loss):
            raise UserError('the loss of a batch is not finite; look at the data: vpt-dense check')
        loss.backward()
        for name, parameter in watched.items():
            if parameter.grad is not None:  # what nothing reads has none
                found[name] += parameter.grad.detach().float().square().cpu()
    model.zero_grad(set_to_none=True)
    return found


def choose(
    backbone: nn.Module, scores: dict[str, Tensor], budget: int, rank: int = 8, ratio: float = 5.0,
    single: bool = True,
) -> Choice:  # fmt: skip
    """Choose what trains, within a number of parameters.

    Of the t most sensitive weights, let a matrix (out, in) have s. If s reaches
    rank (in + out) / ratio, LoRA of this rank updates it; else these s weights train. A vector
    trains as a whole if its s reaches its length / ratio, else not. The largest t is taken whose
    choice is within the budget.

    Args:
        backbone: The backbone.
        scores: As :func:`measure` finds them.
        budget: How many parameters may train.
        rank: Of LoRA.
        ratio: See above; the authors' code has 5.
        single: Whether single weights train; False: only matrices and vectors.

    Raises:
        UserError: If the budget is too small for anything.
    """
    matrices, vectors = units(backbone)
    keys: list[Any] = [*matrices, *vectors]
    costs, owners = [], []
    flat = []
    for key in keys:
        values = scores[key] if key in vectors else _rows(scores[f'{key[0]}.weight'], key[1])
        flat.append(values.flatten())
        owners.append(torch.full((values.numel(),), len(costs), dtype=torch.int32))
        costs.append(values.numel() if key in vectors else rank * sum(values.shape))
    everything, owner = torch.cat(flat), torch.cat(owners)
    starts = torch.tensor([0, *(len(values) for values in flat)]).cumsum(0)
    # More can be looked at than train: what LoRA takes up costs no more.
    most = min(int((everything > 0).sum()), max(20 * budget, 1))
    order = everything.topk(most).indices
    ordered = owner[order]
    cost = torch.tensor(costs)
    is_vector = torch.tensor([key in vectors for key in keys])

    def decide(number: int) -> tuple[Tensor, Tensor, int]:
        counts = torch.bincount(ordered[:number], minlength=len(keys))
        whole = (counts * ratio >= cost) & (counts > 0)
        alone = counts * (~whole & ~is_vector) * single
        return whole, alone, int((whole * cost + alone).sum())

    low, high = 0, most
    while low < high:  # the largest number within the budget: the cost never falls with it
        middle = (low + high + 1) // 2
        low, high = (middle, high) if decide(middle)[2] <= budget else (low, middle - 1)
    whole, alone, number = decide(low)
    if not number:
        raise UserError(
            f'a budget of {budget:,} parameters is too small for anything; the smallest vector has '
            f'{min((p.numel() for p in vectors.values()), default=0):,}')
    choice = Choice(number=number, sensitive=low)
    for i, key in enumerate(keys):
        if whole[i]:
            (choice.vectors if is_vector[i] else choice.low_rank).append(key)
        elif alone[i]:
            own = order[:low][ordered[:low] == i].long() - starts[i]
            name, part = key
            if part:
                own = own + PARTS.index(part) * matrices[key].weight.numel() // len(PARTS)
            others = choice.single.get(name, own.new_zeros(0))
            choice.single[name] = torch.cat((others, own)).sort().values
    return choice


def _rows(weight: Tensor, part: str) -> Tensor:
    """The rows of a weight that are of a part."""
    return weight.chunk(len(PARTS))[PARTS.index(part)] if part else weight


def method_file(choice: Choice, rank: int, places: Path | None, note: str) -> str:
    """The text of a method file (``--method FILE``) in which the choice trains.

    Args:
        choice: As :func:`choose` makes it.
        rank: Of LoRA.
        places: Where :attr:`Choice.single` is stored; None: there is none.
        note: Its first comment, one line.
    """
    parts: dict[str, list[str]] = {}
    for name, part in choice.low_rank:
        parts.setdefault(name, []).append(part)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, own in parts.items():
        groups.setdefault(tuple(own), []).append(name)
    lines = [f'# {note}', 'method = dict(', '    adapters=[']
    for own, names in groups.items():
        said = '' if own == ('',) else f' parts={list(own)!r},'
        lines += [f"        dict(type='vpt_dense.LoRA', rank={rank},{said} targets=["]
        lines += [f'            {_exactly(name)},' for name in names]
        lines += ['        ]),']
    if choice.single:
        lines += ["        dict(type='vpt_dense.SparseUpdate', counts={"]
        lines += [f'            {_exactly(name)}: {len(own)},'
                  for name, own in choice.single.items()]
        lines += ['        }),']
    lines += ['    ],', '    trainable=[']
    if choice.low_rank or choice.single:
        lines += [r"        r'^adapters\.',"]
    lines += [f'        {_exactly(name)},' for name in choice.vectors]
    lines += ['    ],', ')']
    if choice.single:
        lines += ['method_hooks = [', "    dict(type='vpt_dense.SparsePlacesHook',",
                  f'         file={str(places)!r})]']
    lines += ["optim_group = 'adapters'", '']
    return '\n'.join(lines)


def _exactly(name: str) -> str:
    """A pattern that means a name, as it is written in a file."""
    return f"r'^{re.escape(name)}$'"


def table(backbone: nn.Module, scores: dict[str, Tensor], choice: Choice) -> list[list[Any]]:
    """A row for each matrix and vector: name, part, weights, sum of scores, what trains of it."""
    matrices, vectors = units(backbone)
    rows = []
    for name, part in matrices:
        values = _rows(scores[f'{name}.weight'], part)
        number = matrices[name, part].weight.numel() // (len(PARTS) if part else 1)
        single = choice.single.get(name)
        low = PARTS.index(part) * number if part else 0
        alone = 0 if single is None else int(((single >= low) & (single < low + number)).sum())
        trains = 'LoRA' if (name, part) in choice.low_rank else alone
        rows.append([name, part, number, float(values.sum()), trains])
    for name, parameter in vectors.items():
        trains = 'all' if name in choice.vectors else 0
        rows.append([name, '', parameter.numel(), float(scores[name].sum()), trains])
    return rows
