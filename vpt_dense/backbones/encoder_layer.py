"""The transformer block of the prompted backbones."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import Tensor, nn

from vpt_dense.backbones.tuned_block import TunedBlock


class PromptedEncoderLayer(TunedBlock, TransformerEncoderLayer):
    """mmpretrain's transformer block, with prompts that only keys and values are made of.

    Where the outputs at prompt positions are thrown away (VPT-deep), a prompt acts on the other
    tokens through its key and value alone: its query, attention output, projection and MLP are
    dead work. With them left out the outputs at all other positions stay what they were, up to
    rounding. An object of the parent becomes one of this class by
    ``layer.__class__ = PromptedEncoderLayer``.
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
                C / heads), b being B or 1; what :meth:`prompt_keys_values` made of prompts, say.
            only_first: Compute the output of the first token (cls) alone.

        Returns:
            (B, N, C), or (B, 1, C) with ``only_first``. Without prompts it is the parent's output,
            bit for bit.
        """
        return self.run(x, prompts, keys_values, only_first)

    def prompt_keys_values(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Turn prompt tokens, (b, P, C), into keys and values, each (b, heads, P, C / heads)."""
        return self._keys_values()(self.ln1(prompts))

    def _attention(
        self,
        x: Tensor,
        prompts: Tensor | None,
        keys_values: tuple[Tensor, Tensor] | None,
        only_first: bool,
    ) -> Tensor:
        attn = self.attn
        if prompts is None and keys_values is None and not only_first:
            return x + attn(self.ln1(x))
        tokens = self.ln1(x)
        first = tokens[:, :1] if only_first else tokens
        project = self._keys_values()
        if _is_plain(attn.qkv):
            # Not one product whose parts are taken: the keys and values are copied below, and
            # queries that are a part would hold them in memory until backward.
            keys, values = project(tokens)
            (queries,) = self._split_heads(F.linear(first, *self._rows(slice(attn.embed_dims))))
        else:
            queries, keys, values = self._split_heads(attn.qkv(tokens))
            queries = queries[:, :, : first.shape[1]]
        further = [] if keys_values is None else [keys_values]
        if prompts is not None:
            further.append(project(self.ln1(prompts)))
        if further:
            keys, values = (
                torch.cat([own, *(spread(e.to(own.dtype), len(x)) for e in extra)], 2)
                for own, *extra in zip((keys, values), *further, strict=True)
            )  # (B, heads, N + P, C / heads)
        out = attn.scaled_dot_product_attention(
            queries, keys, values, dropout_p=attn.attn_drop if attn.training else 0.0
        )
        out = attn.proj(out.transpose(1, 2).reshape(len(x), -1, attn.embed_dims))
        return x[:, : first.shape[1]] + attn.out_drop(attn.gamma1(attn.proj_drop(out)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        """The second half of the block: x + MLP."""
        return self.ffn(self.ln2(x), identity=x)

    def _keys_values(self) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """What turns tokens (b, n, C) into keys and values, each (b, heads, n, C / heads)."""
        qkv, width = self.attn.qkv, self.attn.embed_dims
        if not _is_plain(qkv):
            return lambda tokens: self._split_heads(qkv(tokens)[..., width:])
        rows = self._rows(slice(width, None))
        return lambda tokens: self._split_heads(F.linear(tokens, *rows))

    def _rows(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """Some rows of the weight and bias of queries, keys and values."""
        qkv = self.attn.qkv
        weight, kind = qkv.weight[rows], qkv.weight.device.type
        if torch.is_autocast_enabled(kind) and weight.dtype == torch.float32:
            # Cast once for all uses; autocast would keep a copy for each until backward.
            weight = weight.to(torch.get_autocast_dtype(kind))
        return weight, None if qkv.bias is None else qkv.bias[rows]

    def _split_heads(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(b, n, k * C) -> k tensors of (b, heads, n, C / heads)."""
        attn = self.attn
        tokens = tokens.unflatten(-1, (-1, attn.num_heads, attn.head_dims))
        return tokens.permute(2, 0, 3, 1, 4).unbind(0)


def spread(tensor: Tensor, batch: int) -> Tensor:
    """Repeat (b, ...) to (batch, ...): each of the b for batch / b neighbours.

    b is 1 for prompts that are the same for all images, the number of members for those of an
    ensemble, whose images come member by member; or ``batch``, and nothing happens.
    """
    return tensor.unsqueeze(1).expand(-1, batch // len(tensor), *[-1] * (tensor.ndim - 1)).flatten(
        0, 1)


def _is_plain(linear: nn.Module) -> bool:
    """Whether its weight and bias say all; not if it is wrapped or an adapter (LoRA) hooks it."""
    hooked = linear._forward_hooks or linear._forward_pre_hooks
    return type(linear) is nn.Linear and not hooked
