"""The block of the Swin transformer, with prompts in every window."""

from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models.backbones.swin_transformer import SwinBlock
from mmpretrain.models.utils import ShiftWindowMSA, WindowMSA
from torch import Tensor, nn

from vpt_dense.backbones.beside import beside, quietly
from vpt_dense.backbones.tuned_block import TunedBlock


class PromptedWindowMSA(WindowMSA):
    """mmpretrain's attention in windows, with prompts of their images; they have no place there."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        batch: int = 1,
        prompts: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        num_out: int = 0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Compute attention.

        Args:
            x: Windows, W an image, image by image, (B * W, n, C).
            mask: Of the shift, (W, n, n).
            batch: B.
            prompts: Normalised prompts, (b, P, C), b being B or 1.
            keys_values: Further keys and values, each (b, heads, P', C / heads).
            num_out: How many of the first prompts have a query; b is B then.

        Returns:
            (B * W, n, C); with ``num_out`` also what the prompts become, (B, num_out, C), the mean
            over the windows of their image. Without prompts it is the parent's output, bit for bit.
        """
        if prompts is None and keys_values is None:
            return super().forward(x, mask)
        qkv, projected = beside(self.qkv, x, prompts)
        # (B, W, heads, n, d)
        queries, keys, values = (
            each.unflatten(0, (batch, x.shape[0] // batch)) for each in self._split_heads(qkv))
        further = []  # (b, 1, heads, P, d)
        if prompts is not None:
            asked, *made = (each[:, None] for each in self._split_heads(projected))
            further.append(made)
            if num_out:
                asked = self._in_windows(asked[..., :num_out, :], queries)
                queries = torch.cat((asked, queries), dim=-2)
        if keys_values is not None:
            further.append([tensor[:, None] for tensor in keys_values])
        keys, values = (
            torch.cat([*(self._in_windows(each, own) for each in extra), own], dim=-2)
            for own, *extra in zip((keys, values), *further, strict=True)
        )  # (B, W, heads, P + P' + n, d)

        bias = self._bias(mask).to(queries.dtype)  # (1 or W, heads, n, n)
        bias = F.pad(bias, (keys.shape[-2] - x.shape[1], 0, num_out, 0))
        bias = bias.expand(keys.shape[1], -1, -1, -1).flatten(0, 1)[None]
        out = F.scaled_dot_product_attention(
            *(tensor.flatten(1, 2) for tensor in (queries, keys, values)),
            attn_mask=bias,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            scale=self.scale,
        ).reshape(queries.shape)
        out = out.transpose(2, 3).flatten(-2)  # (B, W, num_out + n, C)
        windows = self.proj_drop(self.proj(out[:, :, num_out:].flatten(0, 1)))
        if not num_out:
            return windows
        return windows, self.proj_drop(quietly(self.proj, out[:, :, :num_out].mean(1)))

    def _split_heads(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(b, n, 3 C) to queries, keys and values, each (b, heads, n, d)."""
        return tokens.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    def _in_windows(prompts: Tensor, windows: Tensor) -> Tensor:
        """Give every window of a batch the same (b, 1, heads, P, d)."""
        return prompts.to(windows.dtype).expand(*windows.shape[:2], -1, -1, -1)

    def _bias(self, mask: Tensor | None) -> Tensor:
        """Relative position bias and mask, (1 or W, heads, n, n)."""
        length = self.window_size[0] * self.window_size[1]
        table = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = table.unflatten(0, (length, length)).permute(2, 0, 1)[None]
        return bias if mask is None else bias + mask[:, None]


class PromptedShiftWindowMSA(ShiftWindowMSA):
    """mmpretrain's attention in shifted windows, with prompts that every window attends to.

    The prompts of an image are the same for all its windows, so their queries, keys and values are
    computed once an image. They have no place in a window: the relative position bias and the mask
    of the shift are zero for them. Visual prompt tuning (Jia et al., ECCV 2022,
    https://arxiv.org/abs/2203.12119, appendix A).
    """

    def forward(
        self,
        query: Tensor,
        hw_shape: tuple[int, int],
        prompts: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Compute attention.

        Args:
            query: Normalised tokens, (B, P + H * W, C), P prompts in front, whose outputs are
                wanted.
            hw_shape: (H, W) of the map of patches.
            prompts: Further prompts, normalised, of which only keys and values are made, (b, P',
                C), b being B or 1.
            keys_values: Further keys and values, each (b, heads, P'', C / heads).

        Returns:
            (B, P + H * W, C). The output of a prompt is the mean over the windows of its image.
            Without prompts it is the parent's output, bit for bit.
        """
        size, (height, width), batch = self.window_size, hw_shape, query.shape[0]
        num_prompts = int(query.shape[1]) - height * width
        if not num_prompts and prompts is None and keys_values is None:
            return super().forward(query, hw_shape)
        shift = self.shift_size
        if min(hw_shape) <= size and not self.pad_small_map:  # the parent's rule
            shift = 0
        if min(hw_shape) < size and not self.pad_small_map:
            raise ValueError(
                f'the map of {height}x{width} patches is smaller than the window of {size}; set '
                'backbone.pad_small_map=True, or a smaller backbone.window_size'
            )
        x = query[:, num_prompts:].unflatten(1, hw_shape)
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        padded = x.shape[1:3]
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        mask = self.get_attn_mask(tuple(padded), size, shift, x.device)
        windows = self.window_partition(x, size).flatten(1, 2)  # (B * W, size^2, C)
        own = query[:, :num_prompts]
        if num_prompts and prompts is not None:
            prompts = torch.cat((own, prompts.expand(batch, -1, -1)), dim=1)
        elif num_prompts:
            prompts = own
        out = self.w_msa(
            windows, mask=mask, batch=batch, prompts=prompts, keys_values=keys_values,
            num_out=num_prompts,
        )
        if num_prompts:
            out, own = out
        x = self.window_reverse(out.unflatten(1, (size, size)), *padded, size)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        x = x[:, :height, :width].flatten(1, 2)
        if num_prompts:
            x = torch.cat((own, x), dim=1)
        return self.drop(x)

    @staticmethod
    def window_reverse(windows: Tensor, height: int, width: int, size: int) -> Tensor:
        """As the parent's, whose batch is a constant in an exported graph."""
        rows, columns = height // size, width // size
        batch = windows.shape[0] // (rows * columns)
        windows = windows.unflatten(0, (batch, rows, columns)).transpose(2, 3)
        return windows.reshape(batch, height, width, windows.shape[-1])


class PromptedSwinBlock(TunedBlock, SwinBlock):
    """mmpretrain's Swin block, with prompts; see :class:`PromptedShiftWindowMSA`."""

    @classmethod
    def adopt(cls, block: nn.Module) -> None:
        """See :meth:`.TunedBlock.adopt`."""
        super().adopt(block)
        block.attn.__class__ = PromptedShiftWindowMSA
        block.attn.w_msa.__class__ = PromptedWindowMSA

    def parts(self) -> dict[str, Any]:
        """See :meth:`.TunedBlock.parts`."""
        heads = self.attn.w_msa
        return dict(
            embed_dims=heads.embed_dims, num_heads=heads.num_heads, norm1=self.norm1,
            qkv=(heads.qkv,), proj=heads.proj, norm2=self.norm2, fc1=(self.ffn.layers[0][0],),
            fc2=self.ffn.layers[1],
        )

    def _attention(
        self, x: Tensor, hw_shape: tuple[int, int], prompts: Tensor | None = None, **further: Any
    ) -> Tensor:
        tokens, prompts = beside(self.norm1, x, prompts)
        return self.attn(tokens, hw_shape, prompts=prompts, **further) + x

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.norm2(x), identity=x)
