"""Prompts of a backbone whose width grows from stage to stage."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vpt_dense.parts import build
from vpt_dense.prompts.base import Prompt, Site, TokenLayout


class StagePrompts(Prompt):
    """One prompt for each stage, of the width of that stage; to the backbone they are one prompt.

    Layers are counted through all stages. The prompt of a stage is built from the same config with
    its site: it holds what enters these layers, and answers ``is_discarded`` for all.

    Args:
        config: Config of a prompt.
        sites: The stages.

    Attributes:
        stages: Index of a stage -> its prompt; stages without parameters are left out.

    Raises:
        ValueError: From the prompt's own arguments.
    """

    def __init__(self, config: dict, sites: Sequence[Site]) -> None:
        super().__init__()
        self.stages = nn.ModuleDict()
        self._stage_of: dict[int, str] = {}
        for s, site in enumerate(sites):
            prompt = build(config, site=site)
            if any(tensor.numel() for tensor in (*prompt.parameters(), *prompt.buffers())):
                self.stages[str(s)] = prompt
                self._stage_of |= dict.fromkeys(site.layers, str(s))
        self.depends_on_input = any(prompt.depends_on_input for prompt in self.stages.values())

    def _of(self, layer: int) -> tuple[str, Prompt]:
        """The prompt of a layer; of a layer that none enters, any: all know that it is so."""
        stage = self._stage_of.get(layer, next(iter(self.stages)))
        return stage, self.stages[stage]

    def check(self, backbone: nn.Module) -> None:
        """See :meth:`Prompt.check`."""
        for prompt in self.stages.values():
            prompt.check(backbone)

    def start_from(self, backbone: nn.Module) -> None:
        """See :meth:`Prompt.start_from`."""
        for prompt in self.stages.values():
            prompt.start_from(backbone)

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> dict[str, object]:
        """See :meth:`Prompt.prepare`."""
        return {stage: prompt.prepare(embed) for stage, prompt in self.stages.items()}

    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: dict[str, object] | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor | None:
        """See :meth:`Prompt.forward`."""
        stage, prompt = self._of(layer)
        return prompt(x, layer, None if prepared is None else prepared[stage], layout)

    def keys_values(
        self, layer: int, prepared: dict[str, object] | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Prompt.keys_values`."""
        stage, prompt = self._of(layer)
        return prompt.keys_values(layer, None if prepared is None else prepared[stage])

    def is_discarded(self, layer: int) -> bool:
        """See :meth:`Prompt.is_discarded`."""
        return self._of(layer)[1].is_discarded(layer)
