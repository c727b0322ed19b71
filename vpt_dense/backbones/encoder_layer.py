"""The transformer block of the prompted backbones."""

import torch
import torch.nn.functional as F
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor
from torch.amp import is_autocast_available

from vpt_dense.backbones.beside import beside, is_plain, quietly
from vpt_dense.backbones.tuned_block import TunedBlock


class PromptedAttention(MultiheadAttention):
    """mmpretrain's attention, with prompts of which keys and values alone are made."""

    def forward(
        self,
        x: Tensor,
        prompts: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        only_first: bool = False,
    ) -> Tensor:
        """Compute attention.

        Args:
            x: Normalised tokens without the prompts, (B, N, C).
            prompts: Normalised prompts, (b, P, C), b being B or 1.
            keys_values: As in :meth:`PromptedEncoderLayer.forward`.
            only_first: Compute the output of the first token (cls) alone.

        Returns:
            (B, N, C), or (B, 1, C) with ``only_first``. Without prompts it is the parent's output,
            bit for bit.
        """
        if prompts is None and keys_values is None and not only_first:
            return super().forward(x)
        first = x[:, :1] if only_first else x
        further = [] if keys_values is None else [keys_values]
        if is_plain(self.qkv):
            # Not one product whose parts are taken: the keys and values are copied below, and
            # queries that are a part would hold them in memory until backward.
            rows = self._rows(slice(self.embed_dims, None))
            keys, values = self._split_heads(F.linear(x, *rows))
            (queries,) = self._split_heads(F.linear(first, *self._rows(slice(self.embed_dims))))
            if prompts is not None:
                further.append(self._split_heads(F.linear(prompts, *rows)))
        else:
            projected, of_prompts = beside(self.qkv, x, prompts)
            queries, keys, values = self._split_heads(projected)
            queries = queries[:, :, : first.shape[1]]
            if prompts is not None:
                further.append(self._split_heads(of_prompts)[1:])
        if further:
            keys, values = (
                torch.cat([own, *(spread(e.to(own.dtype), x.shape[0]) for e in extra)], 2)
                for own, *extra in zip((keys, values), *further, strict=True)
            )  # (B, heads, N + P, C / heads)
        out = self.scaled_dot_product_attention(
            queries, keys, values, dropout_p=self.attn_drop if self.training else 0.0
        )
        out = self.proj(out.transpose(1, 2).flatten(2))
        return self.out_drop(self.gamma1(self.proj_drop(out)))

    def _rows(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """Some rows of the weight and bias of queries, keys and values."""
        weight, bias = self.qkv.weight[rows], self.qkv.bias
        kind = weight.device.type
        half = is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # not on 'meta'
        if half and weight.dtype == torch.float32:
            # Cast once for all uses; autocast would keep a copy for each until backward.
            weight = weight.to(torch.get_autocast_dtype(kind))
        return weight, None if bias is None else bias[rows]

    def _split_heads(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(b, n, k * C) -> k tensors of (b, heads, n, C / heads)."""
        tokens = tokens.unflatten(-1, (-1, self.num_heads, self.head_dims))
        return tokens.permute(2, 0, 3, 1, 4).unbind(0)


class PromptedEncoderLayer(TunedBlock, TransformerEncoderLayer):
    """mmpretrain's transformer block, with prompts that only keys and values are made of.

    Where the outputs at prompt positions are thrown away (VPT-deep), a prompt acts on the other
    tokens through its key and value alone: its query, attention output, projection and MLP are
    dead work. With them left out the outputs at all other positions stay what they were, up to
    rounding. An object of the parent becomes one of this class by
    ``layer.__class__ = PromptedEncoderLayer``, its attention a :class:`PromptedAttention`.

    The modules in it are called as those of the parent, once and with the tokens that the parent
    has: what watches them sees no prompts (:func:`vpt_dense.backbones.beside.beside`).
    """

    def forward(
        self,
        x: Tensor,
        prompts: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        only_first: bool = False,
    ) -> Tensor:
        """Compute the block.

        Args:
            x: Tokens without the prompts, (B, N, C).
            prompts: Prompt tokens, (B, P, C), or (1, P, C) for the same in the whole batch.
            keys_values: Further keys and values that all tokens attend to, each (b, heads, P,
                C / heads), b being B or 1.
            only_first: Compute the output of the first token (cls) alone.

        Returns:
            (B, N, C), or (B, 1, C) with ``only_first``. Without prompts it is the parent's output,
            bit for bit.
        """
        return self.run(x, prompts, keys_values, only_first)

    def prompt_keys_values(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Turn prompt tokens, (b, P, C), into keys and values, each (b, heads, P, C / heads)."""
        projected = quietly(self.attn.qkv, quietly(self.ln1, prompts))
        return self.attn._split_heads(projected)[1:]

    def _attention(
        self,
        x: Tensor,
        prompts: Tensor | None,
        keys_values: tuple[Tensor, Tensor] | None,
        only_first: bool,
    ) -> Tensor:
        tokens, prompts = beside(self.ln1, x, prompts)
        if prompts is None and keys_values is None and not only_first:
            return x + self.attn(tokens)
        out = self.attn(tokens, prompts=prompts, keys_values=keys_values, only_first=only_first)
        return x[:, : out.shape[1]] + out

    def _feed_forward(self, x: Tensor) -> Tensor:
        """The second half of the block: x + MLP."""
        return self.ffn(self.ln2(x), identity=x)


def spread(tensor: Tensor, batch: int) -> Tensor:
    """Repeat (b, ...) to (batch, ...): each of the b for batch / b neighbours.

    b is 1 for prompts that are the same for all images, the number of members for those of an
    ensemble, whose images come member by member; or ``batch``, and nothing happens.
    """
    number = tensor.shape[0]  # not len(), which is a constant in an exported graph
    if number == 1:
        return tensor.expand(batch, *[-1] * (tensor.ndim - 1))
    if number == batch:
        return tensor
    return tensor.unsqueeze(1).expand(-1, batch // number, *[-1] * (tensor.ndim - 1)).flatten(0, 1)
