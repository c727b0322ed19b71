"""A transformer block that takes prompts as keys and values."""

import torch
import torch.nn.functional as F
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import Tensor


class PromptedEncoderLayer(TransformerEncoderLayer):
    """mmpretrain's transformer block, with prompts that only keys and values are made of.

    Where the outputs at prompt positions are thrown away (VPT-deep), a prompt acts on the other
    tokens through its key and value alone: its query, attention output, projection and MLP are
    dead work. With them left out the outputs at all other positions stay what they were, up to
    rounding. Nothing is added to the block: an object of the parent becomes one of this class by
    ``layer.__class__ = PromptedEncoderLayer``, its parameters and their names are the parent's.
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
            keys_values: What :meth:`prompt_keys_values` made of prompts, in their place.
            only_first: Compute the output of the first token (cls) alone.

        Returns:
            (B, N, C), or (B, 1, C) with ``only_first``. Without prompts it is the parent's output,
            bit for bit.
        """
        if prompts is None and keys_values is None:
            return super().forward(x)
        if keys_values is None:
            keys_values = self.prompt_keys_values(prompts)
        batch = len(x)
        tokens = self.ln1(x)
        keys, values = self._split_heads(self._project(tokens, 'kv'))
        keys, values = (
            torch.cat((own, extra.expand(batch, -1, -1, -1)), dim=2)
            for own, extra in zip((keys, values), keys_values, strict=True)
        )  # (B, heads, N + P, C / heads)
        if only_first:
            x, tokens = x[:, :1], tokens[:, :1]
        (queries,) = self._split_heads(self._project(tokens, 'q'))
        attn = self.attn
        out = attn.scaled_dot_product_attention(
            queries, keys, values, dropout_p=attn.attn_drop if attn.training else 0.0
        )
        out = attn.proj(out.transpose(1, 2).reshape(batch, -1, attn.embed_dims))
        x = x + attn.out_drop(attn.gamma1(attn.proj_drop(out)))
        return self.ffn(self.ln2(x), identity=x)

    def prompt_keys_values(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Turn prompt tokens, (b, P, C), into keys and values, each (b, heads, P, C / heads)."""
        return self._split_heads(self._project(self.ln1(prompts), 'kv'))

    def _project(self, tokens: Tensor, part: str) -> Tensor:
        """Compute the queries ('q') or keys and values ('kv') of some tokens."""
        qkv, width = self.attn.qkv, self.attn.embed_dims
        rows = slice(width) if part == 'q' else slice(width, None)
        if type(qkv) is not torch.nn.Linear:  # wrapped (LoRA, say): its own forward counts
            return qkv(tokens)[..., rows]
        return F.linear(tokens, qkv.weight[rows], None if qkv.bias is None else qkv.bias[rows])

    def _split_heads(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(b, n, k * C) -> k tensors of (b, heads, n, C / heads)."""
        attn = self.attn
        tokens = tokens.unflatten(-1, (-1, attn.num_heads, attn.head_dims))
        return tokens.permute(2, 0, 3, 1, 4).unbind(0)
