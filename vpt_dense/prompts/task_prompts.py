"""Prompts of several tasks: shared in early blocks, each task's own in late ones."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vpt_dense.argument_checks import check_count
from vpt_dense.parts import register
from vpt_dense.prompts.base import Prompt, Site, TokenLayout
from vpt_dense.prompts.token_prompt import TokenPrompt, resolve_range


@register
class TaskPrompts(Prompt):
    """Deep prompts: shared ones in front of a block, and from it on those of the task that acts.

    What is shared and what is a task's own follows TSP-Transformer (S. Wang et al., WACV 2024,
    https://arxiv.org/abs/2311.03427), there in blocks that train. Both are VPT-deep's
    (:class:`vpt_dense.prompts.TokenPrompt`): fresh tokens in front of every block. So blocks in
    front of ``task_layers`` compute the same for all tasks, and a
    :class:`vpt_dense.segmentors.MultiTaskEstimator` runs them once.

    Args:
        num_tokens: Shared prompt tokens of a block.
        task_tokens: A task's own tokens of a block; None: ``num_tokens``.
        task_layers: The first block of tasks' own; negative numbers count from the end.
        dropout: As in :class:`vpt_dense.prompts.TokenPrompt`.
        tasks: Their names, filled in by the model.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        tasks: The names.
        active: The task that acts; it may be set between two passes.
        task_layer: The first block that differs by task.

    Raises:
        ValueError: If an argument is out of its range, or the model has no tasks.
    """

    needs = frozenset({'tokens', 'one width'})
    #: The model says which tasks there are.
    per_task = True
    first_layer = 0

    def __init__(
        self, site: Site, num_tokens: int, task_tokens: int | None = None, task_layers: int = -3,
        dropout: float = 0.0, tasks: Sequence[str] = (), init_cfg: dict | None = None,
    ) -> None:  # fmt: skip
        super().__init__(init_cfg)
        need_tasks(tasks, 'prompt', self)
        task_tokens = num_tokens if task_tokens is None else task_tokens
        check_count(task_tokens, 'prompt.task_tokens')
        self.task_layer = first_of_tasks(task_layers, site.num_layers, 'prompt.task_layers')
        settings = dict(site=site, deep=True, dropout=dropout)
        self.shared = TokenPrompt(
            num_tokens=num_tokens, layer_range=(0, self.task_layer), keep_outputs=False,
            **settings)
        self.own = nn.ModuleDict({
            name: TokenPrompt(
                num_tokens=task_tokens, layer_range=(self.task_layer, None), **settings)
            for name in tasks})
        self.tasks, self.active = tuple(tasks), tasks[0]
        # Keys and values that were stored would be those of one task.
        self.depends_on_input = True

    def _of(self, layer: int) -> TokenPrompt:
        return self.shared if layer < self.task_layer else self.own[self.active]

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> tuple[object, object]:
        """See :meth:`Prompt.prepare`: of the shared prompt, and of that of the task."""
        return self.shared.prepare(embed), self.own[self.active].prepare(embed)

    def forward(
        self, x: Tensor, layer: int, prepared: tuple[object, object] | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor | None:  # fmt: skip
        """See :meth:`Prompt.forward`."""
        part = None if prepared is None else prepared[layer >= self.task_layer]
        return self._of(layer)(x, layer, part, layout)

    def leaves(self, layer: int) -> bool:
        """See :meth:`Prompt.leaves`."""
        return self._of(layer).leaves(layer)

    def is_discarded(self, layer: int) -> bool:
        """See :meth:`Prompt.is_discarded`: in every block, prompts are replaced or end."""
        return self._of(layer).is_discarded(layer)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f'tasks={", ".join(self.tasks)}, own from block {self.task_layer} on'


def need_tasks(tasks: Sequence[str], key: str, part: nn.Module) -> None:
    """Refuse a part for tasks in a model that has none.

    Raises:
        ValueError: Names the key.
    """
    if not tasks:
        raise ValueError(
            f'{key}: {type(part).__name__} is for a model of several tasks, '
            'vpt_dense.MultiTaskEstimator with model.task_heads (docs/multi-task-training.md)')


def first_of_tasks(start: int, num_layers: int, key: str) -> int:
    """The first block that differs by task, 1 to ``num_layers`` - 1.

    Raises:
        ValueError: If no block is shared, or none a task's own.
    """
    if not isinstance(start, int) or isinstance(start, bool):
        raise ValueError(f'{key} must be the index of a block, found {start!r}')
    first, _ = resolve_range((start, None), num_layers, key)
    if first == 0:
        raise ValueError(f'{key}: 1 to {num_layers - 1} of the {num_layers} blocks can be of '
                         f'tasks, found {start!r}, which is all of them')
    return first
