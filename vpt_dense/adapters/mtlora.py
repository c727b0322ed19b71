"""Low-rank updates of several tasks: shared ones, and each task's own in late blocks."""

from collections.abc import Sequence

from torch import Tensor, nn

from vpt_dense.adapters.lora import LowRank
from vpt_dense.adapters.updates import LinearUpdates, Update, find_rows
from vpt_dense.argument_checks import check_count, check_dropout, check_number
from vpt_dense.parts import register
from vpt_dense.prompts.task_prompts import first_of_tasks, need_tasks


@register
class MTLoRA(LinearUpdates):
    r"""MTLoRA (A. Agiza et al., CVPR 2024, https://arxiv.org/abs/2403.20320, section 3.2).

    With U, D as in :class:`vpt_dense.adapters.LoRA`, in shared blocks all tasks have ::

        y = W x + b + s U D dropout(x)

    and from ``task_layers`` on each task t has its own update of a smaller rank beside the shared
    one ::

        y_t = W x_t + b + s U D dropout(x_t) + s U_t D_t dropout(x_t)

    (what the authors' code calls ``matrixv2``). Theirs train norms, biases and a decoder too; here
    ``trainable`` says what does.

    Args:
        rank: Of the shared updates; the paper has 16, 32 or 64.
        task_rank: Of a task's own; the paper's code has 4.
        task_layers: The first block of tasks' own; negative numbers count from the end.
        scale: s.
        targets: As in :class:`vpt_dense.adapters.LoRA`.
        dropout: Of the inputs of updates, while training.
        tasks: Their names, filled in by the model.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        tasks: The names.
        active: The task that acts; it may be set between two passes.
        task_layer: The first block that differs by task.

    Raises:
        ValueError: If an argument is out of its range, a pattern matches no linear layer, or the
            model has no tasks.
    """

    #: Weights of one task would not serve the others.
    mergeable = False
    per_task = True

    def __init__(
        self, backbone: nn.Module, rank: int = 64, task_rank: int = 4, task_layers: int = -3,
        scale: float = 4.0, targets: Sequence[str] = (r'\.(qkv|proj|fc1|fc2)$',),
        dropout: float = 0.05, tasks: Sequence[str] = (), init_cfg: dict | None = None,
    ) -> None:  # fmt: skip
        super().__init__(backbone, init_cfg)
        need_tasks(tasks, 'adapters', self)
        check_count(rank, 'adapters.rank')
        check_count(task_rank, 'adapters.task_rank')
        check_dropout(dropout, 'adapters.dropout')
        scale = check_number(scale, 'adapters.scale', positive=True)
        blocks = [f'{block.name}.' for block in backbone.block_list()]
        self.task_layer = first_of_tasks(task_layers, len(blocks), 'adapters.task_layers')
        late = tuple(blocks[self.task_layer:])

        def make(rows):
            sizes = rows.linear.in_features, rows.number
            shared = LowRank(*sizes, rank, scale, dropout)
            if not rows.name.startswith(late):
                return shared
            return _OfTasks(
                shared, {name: LowRank(*sizes, task_rank, scale, dropout) for name in tasks})

        self.attach(find_rows(backbone, targets), make)
        self.tasks = tuple(tasks)
        self.active = tasks[0]

    @property
    def active(self) -> str:
        """The task that acts."""
        return self._active

    @active.setter
    def active(self, name: str) -> None:
        self._active = name
        for update in self.updates:
            update.active = name  # a shared one does not read it

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f'tasks={", ".join(self.tasks)}, own from block {self.task_layer} on'


class _OfTasks(Update):
    """The sum of a shared update and that of the task that acts."""

    def __init__(self, shared: LowRank, own: dict[str, LowRank]) -> None:
        super().__init__()
        self.number = shared.number
        self.shared, self.own = shared, nn.ModuleDict(own)
        self.active = next(iter(own))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return self.shared(x) + self.own[self.active](x)
