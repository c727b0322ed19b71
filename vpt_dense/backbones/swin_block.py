"""The block of the Swin transformer, with prompts in every window."""

import torch
import torch.nn.functional as F
from mmpretrain.models.backbones.swin_transformer import SwinBlock
from mmpretrain.models.utils import ShiftWindowMSA
from torch import Tensor

from vpt_dense.backbones.tuned_block import TunedBlock


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
        num_prompts: int = 0,
        prompts: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Compute attention.

        Args:
            query: Normalised tokens, (B, P + H * W, C).
            hw_shape: (H, W) of the map of patches.
            num_prompts: P, prompts at the front of ``query`` whose outputs are wanted.
            prompts: Further prompts, normalised, of which only keys and values are made, (b, P',
                C), b being B or 1.
            keys_values: Further keys and values, each (b, heads, P'', C / heads).

        Returns:
            (B, P + H * W, C). The output of a prompt is the mean over the windows of its image.
            Without prompts it is the parent's output, bit for bit.
        """
        if not num_prompts and prompts is None and keys_values is None:
            return super().forward(query, hw_shape)
        msa, size, (height, width) = self.w_msa, self.window_size, hw_shape
        batch, _, channels = query.shape
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
        windows = self.window_partition(x, size).reshape(batch, -1, size**2, channels)
        # (B, W, heads, size^2, d), W windows an image
        queries, keys, values = self._split_heads(windows)

        further = []  # (b, 1, heads, P, d)
        if num_prompts:
            own = self._split_heads(query[:, None, :num_prompts])
            queries = torch.cat((self._in_windows(own[0], queries), queries), dim=-2)
            further.append(own[1:])
        if prompts is not None:
            further.append(self._split_heads(prompts[:, None])[1:])
        if keys_values is not None:
            further.append([tensor[:, None] for tensor in keys_values])
        keys, values = (
            torch.cat([*(self._in_windows(each, own) for each in extra), own], dim=-2)
            for own, *extra in zip((keys, values), *further, strict=True)
        )  # (B, W, heads, P + P' + P'' + size^2, d)

        bias = self._bias(padded, shift, windows.device).to(queries.dtype)  # (1 or W, heads, ...)
        bias = F.pad(bias, (keys.shape[-2] - size**2, 0, num_prompts, 0))
        bias = bias.expand(windows.shape[1], -1, -1, -1).flatten(0, 1)[None]
        out = F.scaled_dot_product_attention(
            *(tensor.flatten(1, 2) for tensor in (queries, keys, values)),
            attn_mask=bias,
            dropout_p=msa.attn_drop.p if msa.training else 0.0,
            scale=msa.scale,
        ).reshape_as(queries)
        out = out.transpose(2, 3).flatten(-2)  # (B, W, P + size^2, C)

        x = out[:, :, num_prompts:].reshape(-1, size, size, channels)
        x = self.window_reverse(x, *padded, size)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        x = x[:, :height, :width].flatten(1, 2)
        if num_prompts:
            x = torch.cat((out[:, :, :num_prompts].mean(1), x), dim=1)
        return self.drop(msa.proj_drop(msa.proj(x)))

    def _split_heads(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Tokens (b, w, n, C) to their queries, keys and values, each (b, w, heads, n, d)."""
        qkv = self.w_msa.qkv(tokens).unflatten(-1, (3, self.w_msa.num_heads, -1))
        return qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)

    @staticmethod
    def _in_windows(prompts: Tensor, windows: Tensor) -> Tensor:
        """Give every window of a batch the same (b, 1, heads, P, d)."""
        return prompts.to(windows.dtype).expand(*windows.shape[:2], -1, -1, -1)

    def _bias(self, padded: torch.Size, shift: int, device: torch.device) -> Tensor:
        """Relative position bias and mask, (1 or W, heads, size^2, size^2)."""
        msa, length = self.w_msa, self.window_size**2
        table = msa.relative_position_bias_table[msa.relative_position_index.flatten()]
        bias = table.unflatten(0, (length, length)).permute(2, 0, 1)[None]
        mask = self.get_attn_mask(tuple(padded), self.window_size, shift, device)
        return bias if mask is None else bias + mask[:, None]


class PromptedSwinBlock(TunedBlock, SwinBlock):
    """mmpretrain's Swin block, with prompts; see :class:`PromptedShiftWindowMSA`."""

    def forward(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        num_prompts: int = 0,
        prompts: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Compute the block.

        Args:
            x: Tokens, (B, P + H * W, C).
            hw_shape: (H, W) of the map of patches.
            num_prompts: P, prompts at the front of ``x``; they pass through the block.
            prompts: Further prompt tokens, (b, P', C), b being B or 1, that act on ``x`` through
                their keys and values alone.
            keys_values: Further keys and values, each (b, heads, P'', C / heads).

        Returns:
            (B, P + H * W, C). Without prompts it is the parent's output, bit for bit.
        """
        return self.run(x, hw_shape, num_prompts, prompts, keys_values)

    def _attention(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        num_prompts: int,
        prompts: Tensor | None,
        keys_values: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        if prompts is not None:
            prompts = self.norm1(prompts)
        return self.attn(self.norm1(x), hw_shape, num_prompts, prompts, keys_values) + x

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.norm2(x), identity=x)
