"""Prompts of the image tower that are made of those of the text tower: MaPLe."""

from collections.abc import Callable

from torch import Tensor, nn

from vpt_dense.argument_checks import check_count
from vpt_dense.parts import register
from vpt_dense.prompts.base import Prompt, Site, TokenLayout
from vpt_dense.prompts.context_prompt import ContextPrompt


@register
class CoupledPrompt(Prompt):
    """MaPLe: the prompts of each block are a linear layer of those of the text tower's block.

    M. U. Khattak et al., CVPR 2023, https://arxiv.org/abs/2210.03117, section 3.2.3: for blocks
    i < J the prompts are F_i(P_i), F_i a linear layer of its own; those behind block J - 1 flow on.

    Args:
        num_tokens: P; filled in from the text tower's prompt.
        depth: J, likewise.
        text_dims: Width of the text tower, likewise.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    depends_on_input = False
    fills = frozenset({'num_tokens', 'depth', 'text_dims'})

    def __init__(
        self,
        site: Site,
        num_tokens: int,
        depth: int,
        text_dims: int,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        for key, value in dict(num_tokens=num_tokens, depth=depth, text_dims=text_dims).items():
            check_count(value, f'prompt.{key}')
        if depth > site.num_layers:
            raise ValueError(
                f'prompt: the text tower has prompts in {depth} blocks, the image tower has '
                f'{site.num_layers} blocks; set model.head.text.prompt.depth')
        self.num_tokens, self.depth, self.num_layers = num_tokens, depth, site.num_layers
        self.project = nn.ModuleList(nn.Linear(text_dims, site.dims) for _ in range(depth))
        self._source: tuple[ContextPrompt, ...] = ()  # a tuple: its parameters are not ours

    def couple(self, source: ContextPrompt) -> None:
        """Say whose prompts they are made of."""
        self._source = (source,)

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
        """The prompts of all blocks, each (1, P, C).

        Raises:
            ValueError: If there is no text tower with prompts beside the backbone.
        """
        if not self._source:
            raise ValueError(
                'prompt: CoupledPrompt is made of the prompts of a text tower; it needs a '
                'vpt_dense.CLIPClassifier whose head has one')
        sets = self._source[0].prepare()
        return [layer(tokens) for layer, tokens in zip(self.project, sets, strict=True)]

    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: list[Tensor] | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor | None:
        """See :meth:`Prompt.forward`."""
        if layer >= self.depth:
            return None
        return (self.prepare() if prepared is None else prepared)[layer]

    def is_discarded(self, layer: int) -> bool:
        """See :meth:`Prompt.is_discarded`."""
        return layer < self.depth and layer + 1 in (self.num_layers, *range(self.depth))
