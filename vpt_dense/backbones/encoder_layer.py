"""The transformer block of the prompted backbones."""

from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn

from vpt_dense.adapters.updates import of_parts
from vpt_dense.backbones.attention import attention, cast_once, in_parts, one_product
from vpt_dense.backbones.beside import beside, is_plain, spread
from vpt_dense.backbones.tuned_block import TunedBlock


class PromptedAttention(MultiheadAttention):
    """mmpretrain's attention, with prompts of which keys and values alone are made."""

    def forward(
        self,
        x: Tensor,
        positions: Any = None,
        prompts: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        only_first: bool = False,
        visible: Tensor | None = None,
        sees: Tensor | None = None,
    ) -> Tensor:
        """Compute attention.

        Args:
            x: Normalised tokens, (B, N, C).
            positions: What :meth:`place` gets; None: the tokens alone know their places.
            prompts: Normalised prompts of which keys and values alone are made, (b, P, C), b being
                B or 1.
            keys_values: Further keys and values, each (b, heads, P', C / heads).
            only_first: Compute the output of the first token (cls) alone.
            visible: Which of ``prompts`` each token attends to, (B, N, P), bool; None: to all.
            sees: Which of the tokens ``x`` each attends to, (B, N, N), bool; None: to all.

        Returns:
            (B, N, C), or (B, 1, C) with ``only_first``. Without prompts it is the parent's output,
            bit for bit.
        """
        updates = of_parts(self.qkv)
        nothing = all(each is None for each in (positions, prompts, keys_values, sees))
        if nothing and not only_first and updates is None:
            return super().forward(x)
        first = x[:, :1] if only_first else x
        further = [] if keys_values is None else [keys_values]
        plain = is_plain(self.qkv)
        alone = positions is not None or only_first or visible is not None
        if updates is not None:
            made = in_parts(self.qkv, updates, x, *([] if prompts is None else [prompts]))
            (queries, keys, values), *theirs = (
                [self._split_heads(each)[0] for each in own] for own in made)
            queries = queries[:, :, : first.shape[1]]
            further += [tuple(own[1:]) for own in theirs]
        elif plain and prompts is not None and not alone and one_product(x, prompts):
            together = torch.cat([x, spread(prompts.to(x.dtype), x.shape[0])], dim=1)
            queries, keys, values = self._split_heads(self.qkv(together))
            queries = queries[:, :, : x.shape[1]]
        elif plain:
            # Not one product whose parts are taken: the keys and values are copied below, and
            # queries that are a part would hold them in memory until backward.
            weight, bias = cast_once(self.qkv.weight, self.qkv.bias)
            ours, theirs = slice(self.embed_dims), slice(self.embed_dims, None)
            of_queries, rows = (
                (weight[part], None if bias is None else bias[part]) for part in (ours, theirs))
            keys, values = self._split_heads(F.linear(x, *rows))
            (queries,) = self._split_heads(F.linear(x[:, : first.shape[1]], *of_queries))
            if prompts is not None:
                further.append(self._split_heads(F.linear(prompts, *rows)))
        else:
            projected, of_prompts = beside(self.qkv, x, prompts)
            queries, keys, values = self._split_heads(projected)
            queries = queries[:, :, : first.shape[1]]
            if prompts is not None:
                further.append(self._split_heads(of_prompts)[1:])
        if positions is not None:
            queries = queries if only_first else self.place(queries, positions)
            keys = self.place(keys, positions)
        if further:
            keys, values = (
                torch.cat([own, *(spread(e.to(own.dtype), x.shape[0]) for e in extra)], 2)
                for own, *extra in zip((keys, values), *further, strict=True)
            )  # (B, heads, N + P, C / heads)
        mask = {}
        if visible is not None or sees is not None:  # prompts come last
            of_prompts = 0 if visible is None else visible.shape[2]
            known = x.shape[1] if sees is not None else 0
            either = visible if sees is None else sees
            others = either.new_ones(*either.shape[:2], keys.shape[2] - known - of_prompts)
            parts = [each for each in (sees, others, visible) if each is not None]
            mask['attn_mask'] = torch.cat(parts, dim=2)[:, None, : first.shape[1]]
        out = self.scaled_dot_product_attention(
            queries, keys, values, dropout_p=self.attn_drop if self.training else 0.0, **mask
        )
        out = self.proj(out.transpose(1, 2).flatten(2))
        return self.out_drop(self.gamma1(self.proj_drop(out)))

    def place(self, tokens: Tensor, positions: Any) -> Tensor:
        """Tell queries or keys, (B, heads, N, C / heads), their places; a family's own."""
        raise NotImplementedError

    def _split_heads(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(b, n, k * C) -> k tensors of (b, heads, n, C / heads)."""
        tokens = tokens.unflatten(-1, (-1, self.num_heads, self.head_dims))
        return tokens.permute(2, 0, 3, 1, 4).unbind(0)


class PromptedEncoderLayer(TunedBlock, TransformerEncoderLayer):
    """mmpretrain's transformer block, with prompts; see :class:`PromptedAttention`."""

    attention_class = PromptedAttention

    @classmethod
    def adopt(cls, block: nn.Module) -> None:
        """See :meth:`.TunedBlock.adopt`."""
        super().adopt(block)
        block.attn.__class__ = cls.attention_class
        block.attn.scaled_dot_product_attention = attention

    def parts(self) -> dict[str, Any]:
        """See :meth:`.TunedBlock.parts`."""
        if hasattr(self.ffn, 'w12'):  # SwiGLU
            linears = [self.ffn.w12, self.ffn.w3]
        else:
            linears = [module for module in self.ffn.modules() if isinstance(module, nn.Linear)]
        return dict(
            embed_dims=self.embed_dims, num_heads=self.attn.num_heads, norm1=self.ln1,
            qkv=(self.attn.qkv,), proj=self.attn.proj, norm2=self.ln2, fc1=(linears[0],),
            fc2=linears[-1])

    def _attention(
        self,
        x: Tensor,
        positions: Any = None,
        prompts: Tensor | None = None,
        only_first: bool = False,
        **further: Any,
    ) -> Tensor:
        tokens, prompts = beside(self.ln1, x, prompts)
        out = self.attn(
            tokens, positions=positions, prompts=prompts, only_first=only_first, **further)
        return (x[:, :1] if only_first else x) + out

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.ln2(x), identity=x)
