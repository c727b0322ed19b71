"""A pool of prompts, of which each image takes those whose keys are nearest: L2P."""

from torch import Tensor

from vpt_dense.argument_checks import check_count
from vpt_dense.parts import register
from vpt_dense.prompts.base import Site, TokenLayout
from vpt_dense.prompts.queried_prompt import QueriedPrompt, cosines


@register
class L2PPrompt(QueriedPrompt):
    """Learning to prompt (L2P; Wang et al., CVPR 2022, https://arxiv.org/abs/2112.08654).

    A pool holds M prompts of P tokens, each with a key k_m. Of an image with the query q
    (:meth:`Prompt.prepare_query`) the N prompts with the highest cos(q, k_m) enter the first block,
    in this order, and flow on; section 4.1, equations 2 to 4. The loss gets

        match * mean over images of the sum over its N of 1 - cos(q, k_m)

    (equation 5; 1 - cosine is the distance). The published head reads the mean of the prompts'
    outputs: ``out_type='avg_tokens', pool='prompts'``, as the method file ``l2p`` says.

    Args:
        num_tokens: P.
        pool_size: M.
        chosen: N.
        match: See above.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`; by default tokens and keys start as the
            tokens of VPT, of which the paper says nothing.

    Attributes:
        tokens: (M, P, C).
        keys: (M, C).

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        site: Site,
        num_tokens: int = 5,
        pool_size: int = 10,
        chosen: int = 5,
        match: float = 0.5,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(site, match, 'match', init_cfg)
        check_count(num_tokens, 'prompt.num_tokens')
        check_count(pool_size, 'prompt.pool_size')
        if check_count(chosen, 'prompt.chosen') > pool_size:
            raise ValueError(
                f'prompt.chosen must be at most prompt.pool_size={pool_size}, found {chosen}')
        self.chosen = chosen
        self.tokens = self.uniform(pool_size, num_tokens, site.dims)
        self.keys = self.uniform(pool_size, site.dims)

    def prepare_query(self, query: Tensor) -> Tensor:
        """Tokens of each image, (B, N * P, C)."""
        found, chosen = cosines(query, self.keys.to(query.dtype)).topk(self.chosen, dim=1)  # (B, N)
        if self.training:
            self._term = (1 - found).sum(1).mean()
        return self.tokens[chosen].flatten(1, 2)

    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor | None:
        """See :meth:`Prompt.forward`."""
        return prepared if layer == 0 else None

    def leaves(self, layer: int) -> bool:
        """See :meth:`Prompt.leaves`."""
        return True

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        size, number, _ = self.tokens.shape
        return f'num_tokens={number}, pool_size={size}, chosen={self.chosen}, match={self.weight:g}'
