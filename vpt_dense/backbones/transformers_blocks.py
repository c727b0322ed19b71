"""The layers of Hugging Face transformers' vision transformers, with prompts and adapters."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vpt_dense.backbones.attention import attention
from vpt_dense.backbones.beside import beside, spread
from vpt_dense.backbones.in_place import InPlaceBlock, adopt, refuse
from vpt_dense.errors import UserError


class TransformersAttention(nn.Module):
    """Attention with prompts of which keys and values alone are made.

    Attributes:
        names: What a family calls the number of heads, the dropout probability and the last layer;
            empty: that is behind it.
        linears: The layers of queries, keys and values.
    """

    names = ('num_attention_heads', 'attention_dropout', 'o_proj')
    linears = ('q_proj', 'k_proj', 'v_proj')

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        prompts: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        **further: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention.

        Args:
            hidden_states: Tokens as attention gets them, (B, F + P + N, C).
            attention_mask: transformers', without prompts alone.
            position_embeddings: Cosine and sine for the last N tokens, each (N, d); all others
                have no place.
            prompts: Prompts of which keys and values alone are made, (b, P', C), b being B or 1.
            keys_values: Further keys and values, each (b, heads, P'', d).
            **further: What transformers hands through to its attention functions.

        Returns:
            (B, F + P + N, C), and the weights of attention if transformers' function gives them,
            with the prompts of the arguments as the last columns. Without these it is
            transformers', bit for bit.

        Raises:
            UserError: If there are prompts and a mask.
        """
        alone = prompts is None and keys_values is None
        if attention_mask is not None and not (
                alone and attention_mask.shape[-1] == hidden_states.shape[1]):
            refuse(self, 'masks do not know prompts; leave attention_mask out')
        if alone:
            given = dict(attention_mask=attention_mask, position_embeddings=position_embeddings)
            further |= {key: value for key, value in given.items() if value is not None}
            return super().forward(hidden_states, **further)
        to_queries, *others = self.layers()
        queries = self._split(to_queries(hidden_states))
        (keys, of_keys), (values, of_values) = (
            beside(layer, hidden_states, prompts) for layer in others)
        keys, values = self._split(keys), self._split(values)
        if position_embeddings is not None:
            queries, keys = self._theirs('apply_rotary_pos_emb')(
                queries, keys, *position_embeddings)
        extra = [] if prompts is None else [(self._split(of_keys), self._split(of_values))]
        extra += [] if keys_values is None else [keys_values]
        keys, values = (
            torch.cat([own, *(spread(e.to(own.dtype), len(own)) for e in others)], 2)
            for own, *others in zip((keys, values), *extra, strict=True)
        )  # (B, heads, F + N + P, d)
        out, weights = self._attend(queries, keys, values, further)  # (B, F + N, heads, d)
        out = out.flatten(2)
        return (getattr(self, self.names[2])(out) if self.names[2] else out), weights

    def layers(self) -> tuple[nn.Linear, ...]:
        """Those of queries, keys and values."""
        return tuple(getattr(self, name) for name in self.linears)

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, further: dict
    ) -> tuple[Tensor, Tensor | None]:
        """As the model's ``attn_implementation`` says; PyTorch's function is called here."""
        dropout = getattr(self, self.names[1]) if self.training else 0.0
        kind = self.config._attn_implementation
        if kind == 'sdpa':
            return attention(queries, keys, values, dropout_p=dropout).transpose(1, 2), None
        function = self._theirs('ALL_ATTENTION_FUNCTIONS').get(
            kind, self._theirs('eager_attention_forward'))
        return function(
            self, queries, keys, values, None, dropout=dropout,
            scaling=queries.shape[-1]**-0.5, **further)

    def _theirs(self, name: str) -> Any:
        """What the module of this attention's class calls so."""
        return getattr(sys.modules[self.original.__module__], name)

    def _split(self, tokens: Tensor) -> Tensor:
        """(b, n, heads * d) to (b, heads, n, d)."""
        return tokens.unflatten(-1, (getattr(self, self.names[0]), -1)).transpose(1, 2)


class InnerAttention(TransformersAttention):
    """Of ViT before transformers 5.9 and of DINOv2 before 5.20: a module without its last layer."""

    names = ('num_attention_heads', 'dropout_prob', '')
    linears = ('query', 'key', 'value')


class OuterAttention(nn.Module):
    """The module around :class:`InnerAttention`, whose forward takes no prompts."""

    def forward(self, hidden_states: Tensor, **further: Any) -> Tensor:
        """Tokens (B, n, C) to (B, n, C); arguments are those of the module inside."""
        out, _ = self.attention(hidden_states, **further)
        return self.output(out, hidden_states)


class DINOv3Attention(TransformersAttention):
    """Of DINOv3, which places the patches by rotation."""

    names = ('num_heads', 'dropout', 'o_proj')


class CLIPAttention(TransformersAttention):
    """Of CLIP and SigLIP."""

    names = ('num_heads', 'dropout', 'out_proj')


class TransformersBlock(InPlaceBlock):
    """A layer: norm, attention, norm, MLP; ViT's, and what others call differently.

    Attributes:
        attention_kind: What its attention becomes.
        names: Of attention and the two norms.
        behind: Names of what the outputs of attention and of the MLP pass, in order.
    """

    attention_kind = TransformersAttention
    names = ('attention', 'layernorm_before', 'layernorm_after')
    behind: tuple[tuple[str, ...], tuple[str, ...]] = (('dropout',), ('dropout',))

    @property
    def gradient_checkpointing(self) -> bool:
        """The switch of transformers: :attr:`.TunedBlock.recompute` of the whole block.

        transformers' own way would run a block again outside of the forward pass that it belongs
        to, from tokens without the prompts that flow on.
        """
        return self.recompute == 'block'

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.recompute = 'block' if enable else None

    @property
    def _gradient_checkpointing_func(self) -> Callable:
        return _call

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, function: Callable) -> None:
        if getattr(function, 'func', function) is not checkpoint:
            raise UserError(
                'activation_checkpointing_enable: blocks that are tuned recompute by themselves '
                'and cannot move what they keep; leave offload out')

    def parts(self) -> dict[str, Any]:
        """See :meth:`.TunedBlock.parts`."""
        attn, *norms = (getattr(self, name) for name in self.names)
        attn, proj = self._attention_layers(attn)
        linears = attn.layers()
        *first, last = self._mlp_layers()
        return dict(
            embed_dims=linears[0].in_features, num_heads=getattr(attn, attn.names[0]),
            norm1=norms[0], qkv=linears, proj=proj, norm2=norms[1], fc1=tuple(first), fc2=last)

    def _attention_layers(self, attn: nn.Module) -> tuple[TransformersAttention, nn.Linear]:
        """What computes attention, and the last layer."""
        return attn, getattr(attn, attn.names[2])

    def _mlp_layers(self) -> list[nn.Linear]:
        """Those of the MLP, in order; the gate of a SwiGLU comes first."""
        return [layer for layer in self.mlp.children() if isinstance(layer, nn.Linear)]

    def _attention(
        self, x: Tensor, *arguments: Any, prompts: Tensor | None = None, **further: Any
    ) -> Tensor:
        tokens, prompts = beside(getattr(self, self.names[1]), x, prompts)
        if prompts is not None:
            further['prompts'] = prompts
        out = getattr(self, self.names[0])(tokens, *arguments, **further)
        return self._pass(out[0] if isinstance(out, tuple) else out, 0) + x

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self._pass(self.mlp(getattr(self, self.names[2])(x)), 1) + x

    def _pass(self, x: Tensor, half: int) -> Tensor:
        for name in self.behind[half]:
            x = getattr(self, name)(x)
        return x


class DINOv2Block(TransformersBlock):
    """Of DINOv2."""

    names = ('attention', 'norm1', 'norm2')
    behind = (('layer_scale1', 'drop_path'), ('layer_scale2', 'drop_path'))


class DINOv3Block(DINOv2Block):
    """Of DINOv3."""

    attention_kind = DINOv3Attention


class CLIPBlock(TransformersBlock):
    """Of CLIP and SigLIP."""

    attention_kind = CLIPAttention
    names = ('self_attn', 'layer_norm1', 'layer_norm2')
    behind = ((), ())


class OlderDINOv2Block(DINOv2Block):
    """Of DINOv2 before transformers 5.20, where attention is a module in another."""

    attention_kind = InnerAttention

    def _attention_layers(self, attn: nn.Module) -> tuple[TransformersAttention, nn.Linear]:
        return attn.attention, attn.output.dense


class OlderViTBlock(OlderDINOv2Block):
    """Of ViT before transformers 5.9, whose MLP is two modules, with dropout and the sum."""

    names = TransformersBlock.names
    behind = ((), ())

    def _mlp_layers(self) -> list[nn.Linear]:
        return [self.intermediate.dense, self.output.dense]

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.output(self.intermediate(self.layernorm_after(x)), x)


#: What a block becomes where its attention is a module in another.
OLDER = {TransformersBlock: OlderViTBlock, DINOv2Block: OlderDINOv2Block}


def adopt_block(by: type[TransformersBlock], block: nn.Module) -> None:
    """Make a layer of transformers ours, in place."""
    attn = getattr(block, by.names[0])
    if isinstance(getattr(attn, 'attention', None), nn.Module):
        by = OLDER[by]
        adopt(by.attention_kind, attn.attention)
        adopt(OuterAttention, attn)
    else:
        adopt(by.attention_kind, attn)
    adopt(by, block)


def _call(function: Callable, *arguments: Any) -> Any:
    return function(*arguments)
