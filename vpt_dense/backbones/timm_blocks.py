"""timm's transformer blocks, with prompts and adapters."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import (
    Attention,
    AttentionRope,
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
)
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from vpt_dense.adapters.updates import of_parts
from vpt_dense.backbones.attention import attention, cast_once, in_parts, one_product
from vpt_dense.backbones.beside import beside, is_plain, spread
from vpt_dense.backbones.in_place import InPlaceBlock, adopt, refuse
from vpt_dense.backbones.rotation import turn_last


class BiasedInParts(nn.Linear):
    """EVA's layer of queries, keys and values: its bias is made of parameters of the attention.

    timm adds that bias past the layer, where no adapter sees it.
    """

    attention: tuple[nn.Module] = ()

    @property
    def bias(self) -> Tensor:
        """(3 C,), zero for the keys."""
        (own,) = self.attention
        return torch.cat((own.q_bias, own.k_bias, own.v_bias))


class TimmAttention(nn.Module):
    """timm's attention, with prompts of which keys and values alone are made.

    Of :class:`timm.layers.Attention`, :class:`timm.layers.AttentionRope` and EVA's.
    """

    def linears(self) -> tuple[nn.Linear, ...]:
        """The layer of queries, keys and values, or the three of them."""
        return (self.qkv,) if self.qkv is not None else (self.q_proj, self.k_proj, self.v_proj)

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        prompts: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        sees: Tensor | None = None,
    ) -> Tensor:
        """Compute attention.

        Args:
            x: Tokens as attention gets them, (B, F + P + N, C).
            rope: Sine and cosine for the last N tokens, (N, 2 d) or as timm makes them; all others
                have no place.
            attn_mask: timm's, without prompts alone.
            is_causal: timm's, without prompts alone.
            prompts: Prompts of which keys and values alone are made, (b, P', C), b being B or 1.
            keys_values: Further keys and values, each (b, heads, P'', d).
            sees: Which of the tokens ``x`` each attends to, (B, n, n), bool; None: to all.

        Returns:
            (B, F + P + N, C). Without prompts it is timm's, bit for bit.

        Raises:
            UserError: If there are prompts and a mask.
        """
        masks = {} if attn_mask is None and not is_causal else dict(
            attn_mask=attn_mask, is_causal=is_causal)
        placed = {} if rope is None else dict(rope=rope)
        among = rope is not None and x.shape[1] - rope.shape[-2] != self.num_prefix_tokens
        alone = prompts is None and keys_values is None and sees is None and not among
        whole = self.qkv is None or (type(self.qkv) is nn.Linear and of_parts(self.qkv) is None)
        if alone and whole:
            return super().forward(x, **placed, **masks)
        if masks and not alone:
            refuse(self, 'masks do not know prompts; leave attn_mask and is_causal out')
        further = [] if keys_values is None else [keys_values]
        queries, keys, values, of_prompts = self._project(x, prompts)
        queries, keys = self.q_norm(queries), self.k_norm(keys)
        if of_prompts is not None:
            further.append((self.k_norm(self._in_groups(of_prompts[0])),
                            self._in_groups(of_prompts[1])))
        if rope is not None:
            # Where nothing is added.
            exact = alone and self.qkv is not None and of_parts(self.qkv) is None
            queries, keys = (self._place(each, rope, exact) for each in (queries, keys))
            queries, keys = queries.type_as(values), keys.type_as(values)
        keys, values = self._in_groups(keys), self._in_groups(values)
        if further:
            keys, values = (
                torch.cat([own, *(spread(e.to(own.dtype), x.shape[0]) for e in extra)], 2)
                for own, *extra in zip((keys, values), *further, strict=True)
            )  # (B, heads, F + N + P, d)
        if sees is not None:  # all see what came last
            others = sees.new_ones(*sees.shape[:2], keys.shape[2] - sees.shape[2])
            masks = dict(attn_mask=torch.cat((sees, others), dim=2)[:, None])
        out = attention(
            queries, keys, values, dropout_p=self.attn_drop.p if self.training else 0.0, **masks)
        out = self.norm(out.transpose(1, 2).flatten(2))
        gate = getattr(self, 'gate', None)  # older releases of timm have none
        if gate is not None:
            out = out * gate(x).sigmoid()
        return self.proj_drop(self.proj(out))

    def _project(
        self, x: Tensor, prompts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Queries, keys and values of tokens, each (B, heads, n, d); keys and values of prompts."""
        if self.qkv is None:
            queries = self._split(self.q_proj(x))
            (keys, of_keys), (values, of_values) = (
                beside(layer, x, prompts) for layer in (self.k_proj, self.v_proj))
            theirs = None if prompts is None else (self._split(of_keys), self._split(of_values))
            return queries, self._split(keys), self._split(values), theirs
        updates = of_parts(self.qkv)
        if updates is not None:
            made = in_parts(self.qkv, updates, x, *([] if prompts is None else [prompts]))
            (queries, keys, values), *theirs = [tuple(map(self._split, each)) for each in made]
            return queries, keys, values, theirs[0][1:] if theirs else None
        if is_plain(self.qkv) and prompts is not None and not one_product(x, prompts):
            # Not one product whose parts are taken: keys and values are copied, and queries that
            # are a part would hold them in memory until backward.
            weight, bias = cast_once(self.qkv.weight, self.qkv.bias)
            stop = len(weight) // 3
            rows = weight[stop:], None if bias is None else bias[stop:]
            queries = F.linear(x, weight[:stop], None if bias is None else bias[:stop])
            keys, values = map(self._split, F.linear(x, *rows).chunk(2, -1))
            theirs = tuple(map(self._split, F.linear(prompts, *rows).chunk(2, -1)))
            return self._split(queries), keys, values, theirs
        projected, of_prompts = beside(self.qkv, x, prompts)
        queries, keys, values = map(self._split, projected.chunk(3, -1))
        if prompts is None:
            return queries, keys, values, None
        _, *theirs = map(self._split, of_prompts.chunk(3, -1))
        return queries, keys, values, tuple(theirs)

    def _split(self, tokens: Tensor) -> Tensor:
        """(b, n, heads * d) to (b, heads, n, d)."""
        head_dims = self.proj.in_features // self.num_heads
        return tokens.unflatten(-1, (-1, head_dims)).transpose(1, 2)

    def _in_groups(self, tokens: Tensor) -> Tensor:
        """Repeat the heads that several queries share."""
        groups = self.num_heads // tokens.shape[1]
        return tokens if groups == 1 else tokens.repeat_interleave(groups, dim=1)

    def _place(self, tokens: Tensor, rope: Tensor, exact: bool) -> Tensor:
        """Turn the patches, the last N of tokens (B, heads, n, d)."""
        return turn_last(tokens, *rope.chunk(2, -1), getattr(self, 'rotate_half', False), exact)


class PlacesOnce(nn.Module):
    """timm's rotary embedding without parameters, which remembers the last grid.

    For images of any size timm makes it anew in every pass, on the CPU for DINOv3's, so that a GPU
    would wait for it.
    """

    last: tuple[Any, Tensor | None] = (None, None)

    def get_embed(self, shape: Any = None, dtype: torch.dtype | None = None, **further: Any) -> Any:
        """As timm's."""
        augmented = self.training and getattr(self, 'aug_active', False)
        if shape is None or augmented or torch.compiler.is_compiling() or further:
            arguments = dict(further) if dtype is None else dict(further, dtype=dtype)
            return super().get_embed(shape, **arguments)
        (buffer, *_) = self.buffers()
        key = (tuple(shape), dtype, buffer.device, buffer.dtype)
        found, embedding = self.last
        if found != key or embedding is None:
            with torch.inference_mode(False):  # else a later training could not use it
                embedding = super().get_embed(shape, **({} if dtype is None else dict(dtype=dtype)))
            self.last = (key, embedding)
        return embedding


class PreNormBlock(InPlaceBlock):
    """timm's ``Block`` and ``EvaBlock``: norm, attention, scale; norm, MLP, scale."""

    prenorm = True

    def parts(self) -> dict[str, Any]:
        """See :meth:`.TunedBlock.parts`."""
        attn, mlp = self.attn, self.mlp
        norms = (attn.q_norm, attn.k_norm)
        has_norms = not all(isinstance(norm, nn.Identity) for norm in norms)
        first = [mlp.fc1_g, mlp.fc1_x] if hasattr(mlp, 'fc1_g') else [getattr(mlp, 'fc1', None)]
        return dict(
            embed_dims=attn.proj.out_features, num_heads=attn.num_heads, norm1=self.norm1,
            qkv=attn.linears() if isinstance(attn, TimmAttention) else (), proj=attn.proj,
            norm2=self.norm2, fc1=tuple(first), fc2=getattr(mlp, 'fc2', None),
            norms=norms if has_norms else None, prenorm=self.prenorm)

    def _attention(self, x: Tensor, *arguments: Any, **further: Any) -> Tensor:
        return self._join(x, self._mix(x, *arguments, **further), 1)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self._join(x, self._transform(x), 2)

    def _halves(self, x: Tensor, *arguments: Any, **further: Any) -> Tensor:
        """See :meth:`.TunedBlock._halves`.

        What is computed again ends in a linear layer, without layer scale and residual sum: of
        that layer backward keeps a weight, so that it is not run again.
        """
        if self._has_adapters_inside():
            return super()._halves(x, *arguments, **further)
        further = {key: value for key, value in further.items() if key != 'layout'}
        x = self._join(x, self._checkpoint(self._mix, x, *arguments, **further), 1)
        return self._join(x, self._checkpoint(self._transform, x), 2)

    def _mix(
        self, x: Tensor, *arguments: Any, prompts: Tensor | None = None, **further: Any
    ) -> Tensor:
        """Attention without its residual sum."""
        tokens, prompts = beside(self.norm1, x, prompts)
        if prompts is not None:
            further['prompts'] = prompts
        return self.attn(tokens, *arguments, **further)

    def _transform(self, x: Tensor) -> Tensor:
        """The MLP without its residual sum."""
        return self.mlp(self.norm2(x))

    def _join(self, x: Tensor, out: Tensor, half: int) -> Tensor:
        """The residual sum of half 1 or 2."""
        drop_path = self.drop_path1 if half == 1 else self.drop_path2
        return x + drop_path(self._scaled(out, half))

    def _scaled(self, x: Tensor, number: int) -> Tensor:
        """Layer scale, which timm's two blocks call differently."""
        if hasattr(self, f'ls{number}'):
            return getattr(self, f'ls{number}')(x)
        gamma = getattr(self, f'gamma_{number}')
        return x if gamma is None else gamma * x


class PostNormBlock(PreNormBlock):
    """timm's ``ResPostBlock`` and ``EvaBlockPostNorm``: attention, norm; MLP, norm."""

    prenorm = False

    def _mix(
        self, x: Tensor, *arguments: Any, prompts: Tensor | None = None, **further: Any
    ) -> Tensor:
        if prompts is not None:
            further['prompts'] = prompts
        return self.norm1(self.attn(x, *arguments, **further))

    def _transform(self, x: Tensor) -> Tensor:
        return self.norm2(self.mlp(x))

    def _scaled(self, x: Tensor, half: int) -> Tensor:
        return x


class WholeBlock(InPlaceBlock):
    """Blocks with attention and MLP side by side: prompts pass them among the tokens."""

    takes_keys_values = False

    def parts(self) -> dict[str, Any]:
        """See :meth:`.TunedBlock.parts`; what adapters would need has no place of its own."""
        norm = getattr(self, 'in_norm', None) or self.attns[0].norm
        heads = getattr(self, 'num_heads', None) or self.attns[0].attn.num_heads
        return dict(
            embed_dims=norm.weight.shape[0], num_heads=heads, norm1=norm, qkv=(), proj=None,
            norm2=None, fc1=(), fc2=None)

    def _attention(self, x: Tensor, *arguments: Any, **further: Any) -> Tensor:
        """The whole block."""
        return self.original.forward(self, x, *arguments, **further)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x


#: timm's blocks -> what they become.
BLOCKS: dict[type[nn.Module], type[InPlaceBlock]] = {
    vision_transformer.Block: PreNormBlock,
    eva.EvaBlock: PreNormBlock,
    vision_transformer.ResPostBlock: PostNormBlock,
    eva.EvaBlockPostNorm: PostNormBlock,
    vision_transformer.ParallelScalingBlock: WholeBlock,
    vision_transformer.ParallelThingsBlock: WholeBlock,
    **({vision_transformer.DiffParallelScalingBlock: WholeBlock}
       if hasattr(vision_transformer, 'DiffParallelScalingBlock') else {}),
}
ATTENTIONS = (Attention, AttentionRope, eva.EvaAttention)
#: Rotary embeddings that follow from the grid alone.
ROPES = (RotaryEmbeddingCat, RotaryEmbeddingDinoV3)


def known(module: nn.Module, kinds: Any) -> Any:
    """The first of some classes whose forward a module has; None: it has another."""
    return next(
        (kind for kind in kinds
         if isinstance(module, kind) and type(module).forward is kind.forward), None)


def adopt_block(block: nn.Module) -> None:
    """Make one of timm's blocks ours, in place."""
    adopt(BLOCKS[known(block, BLOCKS)], block)
    attn = getattr(block, 'attn', None)
    if known(attn, ATTENTIONS) is None or isinstance(block, WholeBlock):
        block.takes_keys_values = False
        return
    adopt(TimmAttention, attn)
    if getattr(attn, 'q_bias', None) is not None:
        adopt(BiasedInParts, attn.qkv)
        attn.qkv.attention = (attn,)  # in a tuple it is no submodule


def run_by(name: str) -> Callable:
    """A way into a model of timm that calls timm's in a forward pass."""

    def method(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.run(getattr(self.original, name).__get__(self), x, *args, **kwargs)

    method.__name__ = name
    method.__doc__ = f"As timm's ``{name}``; prompts are never among what it returns."
    return method
