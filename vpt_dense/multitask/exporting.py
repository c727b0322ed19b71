"""Tasks of a MultiTask as one file, of ONNX or torch.export, with the task as an input."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vpt_dense import safe_files
from vpt_dense.deploy import card as cards
from vpt_dense.deploy import graphs
from vpt_dense.errors import UserError
from vpt_dense.multitask.loading import Task
from vpt_dense.multitask.structures import Structure
from vpt_dense.multitask.weights import Frozen
from vpt_dense.version import __version__

#: What the card of such a file says that it is; others describe one model.
FORMAT = 'vpt_dense tasks 1'
#: An ONNX file ends at 2 GiB.
_IN_ONE_FILE = 1_900_000_000


class _Scores(nn.Module):
    """A model's scores as its forward pass."""

    def __init__(self, model: nn.Module, scores: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.model, self.scores = model, scores

    def forward(self, images: Tensor) -> Any:
        """(B, C, H, W) to scores."""
        return self.scores(self.model, images)


class _Kind:
    """Tasks of one structure: a model without numbers, and their tensors, stacked."""

    def __init__(self, structure: Structure, tasks: Sequence[Task]) -> None:
        #: Name in the model -> name of the shared tensor.
        self.shared = {
            f'model.{name}': name.removeprefix(structure.prefix) for name in structure.shared}
        stacks: dict[str, list[Tensor]] = {}
        for task in tasks:
            with task.model() as model:
                held = dict(model.named_parameters(remove_duplicate=False))
                held |= dict(model.named_buffers(remove_duplicate=False))
                for name, tensor in held.items():
                    if name not in structure.shared:
                        stacks.setdefault(f'model.{name}', []).append(tensor.detach())
        self.tensors = {name: torch.stack(each) for name, each in stacks.items()}
        # No memory for numbers, and not what blocks in front put out for a batch.
        without: dict[int, Any] = {id(tensor): tensor.to('meta') for tensor in held.values()}
        without[id(getattr(structure.backbone_of(model), 'feature_cache', None))] = None
        self.model = _Scores(copy.deepcopy(model, without), tasks[0].scores).eval()

    def run(
        self, frozen: dict[str, Tensor], own: Sequence[Tensor], images: Tensor, place: Tensor
    ) -> Tensor:
        """Scores of the task at a place."""
        state = {name: frozen[shared] for name, shared in self.shared.items()}
        state |= {name: stack.index_select(0, place)[0]
                  for name, stack in zip(self.tensors, own, strict=True)}
        return functional_call(self.model, state, (images,))


class Selected(nn.Module):
    """Images and the number of a task to its scores: what is in the graph.

    The frozen weights are there once. Of tasks of one structure the tensors are stacked, and the
    task's are taken; those of different structures are branches, of which one is computed.

    Args:
        frozen: The shared weights.
        tasks: In the order of their numbers.
        channels: Most channels that a task's scores have: those of others are filled with -inf.
        form: (height, width) of the scores, where they are maps; else empty.
    """

    def __init__(
        self, frozen: Frozen, tasks: Sequence[Task], channels: int, form: Sequence[int]
    ) -> None:
        super().__init__()
        self.channels, self.form = channels, tuple(form)
        groups: dict[int, list[int]] = {}
        for number, task in enumerate(tasks):
            groups.setdefault(id(task.structure), []).append(number)
        of_kind = torch.zeros(len(tasks), dtype=torch.long)
        place = torch.zeros(len(tasks), dtype=torch.long)
        self.kinds = []
        for k, numbers in enumerate(groups.values()):
            of_kind[numbers], place[numbers] = k, torch.arange(len(numbers))
            kind = _Kind(tasks[numbers[0]].structure, [tasks[i] for i in numbers])
            self.kinds.append(kind)
            for i, tensor in enumerate(kind.tensors.values()):
                self.register_buffer(f'kind_{k}_{i}', tensor)
        used = {name for kind in self.kinds for name in kind.shared.values()}
        self.names = [name for name in frozen.tensors if name in used]
        for i, name in enumerate(self.names):
            self.register_buffer(f'frozen_{i}', frozen.tensors[name])
        self.register_buffer('of_kind', of_kind)
        self.register_buffer('place', place)

    def forward(self, images: Tensor, task: Tensor) -> Tensor:
        """Compute the scores of a task.

        Args:
            images: (B, C, H, W), normalised as the task needs it.
            task: (), int64, its number.

        Returns:
            (B, channels) or (B, channels, H, W).
        """
        place = self.place.index_select(0, task.reshape(1))
        of_kind = self.of_kind.index_select(0, task.reshape(1))[0]
        frozen = {name: getattr(self, f'frozen_{i}') for i, name in enumerate(self.names)}
        form = (images.shape[0], self.channels, *self.form)
        scores = images.new_full(form, -torch.inf)
        for k, kind in enumerate(self.kinds):
            names = sorted(set(kind.shared.values()))
            own = [getattr(self, f'kind_{k}_{i}') for i in range(len(kind.tensors))]
            given = (scores, images, place, *(frozen[name] for name in names), *own)
            run = self._run(kind, names)
            # One after the other: branches within branches are traced over and over.
            (scores,) = (run(*given) if len(self.kinds) == 1 else
                         torch.ops.higher_order.cond(of_kind == k, run, _as_it_is, given))
        return scores

    def fingerprint(self) -> str:
        """SHA-256 of all numbers: that of a file tells whether it is of these tasks."""
        digest = hashlib.sha256()
        for name, tensor in self.named_buffers():
            digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)} '.encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _run(self, kind: _Kind, names: Sequence[str]) -> Callable[..., tuple[Tensor]]:
        def run(_: Tensor, images: Tensor, place: Tensor, *held: Tensor) -> tuple[Tensor]:
            frozen = dict(zip(names, held, strict=False))  # its own are behind them
            scores = kind.run(frozen, held[len(names):], images, place)
            more = self.channels - scores.shape[1]
            return (F.pad(scores, [0, 0] * len(self.form) + [0, more], value=-torch.inf),)

        return run


def _as_it_is(scores: Tensor, *_: Tensor) -> tuple[Tensor]:
    return (scores.clone(),)


class Wanted(NamedTuple):
    """What a file of tasks has to be.

    Attributes:
        module: The graph's.
        noise: Images (B, C, H, W) at random.
        scores: Task -> its scores of each of them, as its model gives them.
        card: What the file says of itself.
    """

    module: Selected
    noise: list[Tensor]
    scores: dict[str, list[Tensor]]
    card: dict[str, Any]


def prepare(
    frozen: Frozen, tasks: dict[str, Task], out: str | Path, size: tuple[int, int], channels: int
) -> Wanted:
    """Find out what a file of tasks has to compute.

    Args:
        frozen: The shared weights, on a CPU.
        tasks: Name -> task, in the order of their numbers.
        out: What errors call it.
        size: (height, width) of images in pixels.
        channels: Of images.

    Raises:
        UserError: If one graph cannot have these tasks.
    """
    if not tasks:
        raise UserError(f'export {out}: there are no tasks')
    if frozen.device.type != 'cpu':
        raise UserError(f'export {out}: the backbone is on {frozen.device}; make a MultiTask with '
                        "device='cpu'")  # fmt: skip
    noise = [torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(n),
                         dtype=torch.float64).to(frozen.dtype) for n in (2, 3)]  # fmt: skip
    wanted = {}
    for name, task in tasks.items():
        with task.model() as model, torch.no_grad():
            window = window_of(model) or size
            if window != size:
                raise UserError(
                    f'export {out}: task {name} looks at windows of {window[0]}x{window[1]} pixels '
                    f'(test_cfg.crop_size); take size=({window[0]}, {window[1]})')
            wanted[name] = [task.scores(model, images) for images in noise]
    forms = {name: getattr(scores[0], 'shape', (0,))[2:] if isinstance(scores[0], Tensor) else None
             for name, scores in wanted.items()}  # fmt: skip
    first = next(iter(forms))
    for name, form in forms.items():
        if form is None:
            raise UserError(f'export {out}: task {name} gives features, no scores; export its '
                            'classifier or segmentor')  # fmt: skip
        if form != forms[first]:
            raise UserError(
                f'export {out}: the scores of task {first} are {_told(wanted[first][0])}, those of '
                f'{name} {_told(wanted[name][0])}; write tasks of different kinds to a file each')
    numbers = {name: scores[0].shape[1] for name, scores in wanted.items()}
    module = Selected(frozen, list(tasks.values()), max(numbers.values()), forms[first]).eval()
    card = dict(
        format=FORMAT, version=__version__, tasks=list(tasks), channels=list(numbers.values()),
        input=dict(size=list(size), channels=channels), output=dict(name='scores'),
        structures=len(module.kinds), sha256=module.fingerprint())
    return Wanted(module, noise, wanted, card)


def window_of(model: nn.Module) -> tuple[int, int] | None:
    """(height, width) in pixels of the windows that a segmentor looks at; None: at the whole."""
    test_cfg = getattr(model, 'test_cfg', None) or {}
    return tuple(test_cfg['crop_size']) if test_cfg.get('mode') == 'slide' else None


def export(
    frozen: Frozen, tasks: dict[str, Task], out: str | Path, size: tuple[int, int], channels: int
) -> dict[str, Any]:
    """Write tasks as one file, which is there only if it computes what they compute.

    Args:
        frozen: The shared weights, on a CPU.
        tasks: Name -> task, in the order of their numbers.
        out: The file, ``.onnx`` or ``.pt2``.
        size: (height, width) of images in pixels.
        channels: Of images.

    Returns:
        The card that the file holds.

    Raises:
        UserError: If there is no such graph, or see :meth:`vpt_dense.MultiTask.export`.
    """
    check_file(frozen, tasks, out)
    wanted = prepare(frozen, tasks, out, size, channels)
    write(wanted, out)
    return wanted.card


def check_file(frozen: Frozen, tasks: dict[str, Task], out: str | Path) -> None:
    """Check that tasks can be written to a file of its kind.

    Raises:
        UserError: If not.
    """
    kind = Path(out).suffix[1:].lower()
    if kind not in ('onnx', 'pt2'):
        raise UserError(f'export {out}: give it the ending .onnx or .pt2')
    if kind == 'onnx':
        cards.needed('onnx', 'onnxscript', 'onnxruntime')
        total = frozen.nbytes + sum(task.nbytes for task in tasks.values())
        if total > _IN_ONE_FILE:
            raise UserError(f'export {out}: {total / 1e9:.1f} GB of weights, an ONNX file holds '
                            '2 GB; take .pt2')  # fmt: skip


def write(wanted: Wanted, out: str | Path) -> None:
    """Write the file that is wanted.

    Raises:
        UserError: If there is no such graph, or it computes something else.
    """
    batches = ({0: torch.export.Dim.DYNAMIC}, None)
    try:
        with torch.no_grad(), graphs.quietly():
            program = torch.export.export(
                wanted.module, (wanted.noise[0], torch.tensor(0)), dynamic_shapes=batches,
                strict=False)
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise UserError(f'export {out}: there is no graph of tasks {", ".join(wanted.scores)}: '
                        f'{graphs.first_line(error)}') from error  # fmt: skip
    with safe_files.atomic(out) as unfinished:
        kind = Path(out).suffix[1:].lower()
        run = (graphs.write_onnx(program, unfinished, wanted.card, ('images', 'task'))
               if kind == 'onnx' else graphs.write_pt2(program, unfinished, wanted.card))
        try:
            check(wanted, run)
        except UserError as error:
            raise UserError(f'{out} is not written: {error}') from error


def check(wanted: Wanted, run: Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]) -> None:
    """Compare what a file computes with the models.

    Args:
        wanted: What it has to compute.
        run: Computes it: images (B, C, H, W) and the number of a task to scores.

    Raises:
        UserError: If it computes something else.
    """
    for number, (name, expected) in enumerate(wanted.scores.items()):
        for images, scores in zip(wanted.noise, expected, strict=True):
            (found,) = run(images.numpy(), np.array(number))
            gap = float(np.abs(found[:, :scores.shape[1]] - scores.numpy()).max())
            limit = graphs.TOLERANCE * float(scores.abs().max())
            if not gap <= limit:
                raise UserError(f'scores of task {name} differ by {gap:.2g} from the model (at '
                                f'most {limit:.2g})')  # fmt: skip


def _told(scores: Tensor) -> str:
    if scores.ndim == 2:
        return 'one for each class'
    return f'maps of {"x".join(map(str, scores.shape[2:]))}'
