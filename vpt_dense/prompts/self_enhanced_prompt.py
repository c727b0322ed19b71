"""Prompts that are renewed before each block from tokens of the input: SEP."""

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_choice, check_count, check_flag, check_number
from vpt_dense.parts import register
from vpt_dense.prompts.base import Prompt, Site, TokenLayout


class TokenFusing(nn.Module):
    """Fuses prompts with as many tokens: SEP's module of a block.

    v = s1 sel + (1 - s1) MHA(LN(prompt), LN(sel), LN(sel)); the new prompt is
    s2 v + (1 - s2) MLP(LN(v)), the MLP C -> hidden -> C with x sigmoid(1.702 x), no biases.

    Args:
        dims: C.
        hidden_dims: Of the MLP.
        scale: What s1 and s2, which train, start at.
    """

    def __init__(self, dims: int, hidden_dims: int, scale: float) -> None:
        super().__init__()
        self.norm_prompt, self.norm_tokens = nn.LayerNorm(dims), nn.LayerNorm(dims)
        self.norm = nn.LayerNorm(dims)
        self.attention = nn.MultiheadAttention(dims, max(dims // 64, 1), batch_first=True)
        self.fc1 = nn.Linear(dims, hidden_dims, bias=False)
        self.fc2 = nn.Linear(hidden_dims, dims, bias=False)
        self.scales = nn.Parameter(torch.full((2,), float(scale)))

    def forward(self, prompts: Tensor, selected: Tensor) -> Tensor:
        """Both (B, P, C), and so is what is returned."""
        keys = self.norm_tokens(selected)
        attended = self.attention(self.norm_prompt(prompts), keys, keys, need_weights=False)[0]
        fused = self.scales[0] * selected + (1 - self.scales[0]) * attended
        hidden = self.fc1(self.norm(fused))
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        return self.scales[1] * fused + (1 - self.scales[1]) * self.fc2(hidden)


@register
class SelfEnhancedPrompt(Prompt):
    """SEP (H. Yao et al., https://arxiv.org/abs/2405.15549), for either tower.

    The first block gets learnt tokens. Before each later one what comes out at their places is
    fused (:class:`TokenFusing`) with P tokens of the input: in the image tower those with the
    largest mean square, the largest first; in the text tower the P that follow the prompts.

    The authors' code chooses by the mean square over a whole batch of images, so that a prediction
    depends on what else is in its batch: ``per_image=False``. Its attention mixes the images of a
    batch in place of the tokens of an image, which this class does not.

    Args:
        num_tokens: P.
        select: 'salient' (images) or 'next' (texts).
        hidden_dims: Of the MLP.
        scale: What s1 and s2 start at.
        per_image: Whether salient tokens are chosen for each image.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        site: Site,
        num_tokens: int = 4,
        select: str = 'salient',
        hidden_dims: int = 256,
        scale: float = 0.75,
        per_image: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_count(num_tokens, 'prompt.num_tokens')
        check_count(hidden_dims, 'prompt.hidden_dims')
        check_number(scale, 'prompt.scale')
        check_flag(per_image, 'prompt.per_image')
        self.select = check_choice(select, 'prompt.select', ('salient', 'next'))
        if select == 'next' and not per_image:
            raise ValueError("prompt.per_image=False is for prompt.select='salient'")
        self.num_tokens, self.per_image = num_tokens, per_image
        self.least_words = num_tokens if select == 'next' else 0
        self.tokens = nn.Parameter(torch.empty(1, num_tokens, site.dims))
        nn.init.normal_(self.tokens, std=0.02)
        self.fusing = nn.ModuleList(
            TokenFusing(site.dims, hidden_dims, scale) for _ in range(site.num_layers - 1))

    def check(self, backbone: nn.Module) -> None:
        """See :meth:`Prompt.check`: salient tokens of a text would be of the padding too."""
        texts = 'texts' in backbone.offers
        if texts != (self.select == 'next'):
            raise ValueError(
                f"prompt.select={self.select!r} is for {'images' if texts else 'texts'}, this is a "
                f"{type(backbone).__name__}: take {'next' if texts else 'salient'!r}")

    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: object = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """See :meth:`Prompt.forward`."""
        if layer == 0:
            return self.tokens
        return self.fusing[layer - 1](layout.prompts(x), self._selected(x, layout))

    def _selected(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """P tokens that are no prompts, (B, P, C)."""
        others = layout.replace(x, None)[0]
        if self.select == 'next':
            return layout.patches(x)[:, : self.num_tokens]
        squares = others.detach().float().square().mean(-1)  # (B, F + N)
        if squares.shape[1] < self.num_tokens:
            raise ValueError(
                f'prompt.num_tokens is {self.num_tokens}, but an image has {squares.shape[1]} '
                'tokens to choose from')
        if not self.per_image:
            squares = squares.mean(0, keepdim=True).expand_as(squares)
        chosen = squares.topk(self.num_tokens, dim=1).indices  # (B, P)
        return others.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))
