"""Swin transformers: Microsoft's, timm's and OpenMMLab's.

Patch merging puts the four patches of a 2x2 block side by side. Microsoft and timm put all
channels of a patch together, patches down the columns; OpenMMLab the four patches of a channel
together, along the rows, as ``nn.Unfold`` does. The attention masks and the indices into the table
of position biases follow from the window's size and are never loaded.
"""

from torch import Tensor

from vpt_dense.weights.layouts.base import Layout

_FIXED = r'\.(attn_mask|relative_position_index)$'
_PROMPTS = r'^(deep_)?prompt_embeddings'  # of the original visual prompt tuning


def _merge(tensor: Tensor) -> Tensor:
    """Reorder the last axis (4 C) of patch merging: (patch, channel) to (channel, patch)."""
    *rest, width = tensor.shape
    patches = tensor.reshape(*rest, 4, width // 4)
    return patches[..., [0, 2, 1, 3], :].transpose(-1, -2).reshape(tensor.shape)


def _rules(downsample: int) -> tuple[tuple[str, str], ...]:
    """Rules of Microsoft's names; ``downsample``: the stage whose end is stage 0's in the name."""
    block, ours = 'layers.*.blocks.*.', 'stages.*.blocks.*.'
    return (
        ('patch_embed.proj.', 'patch_embed.projection.'),
        *((f'layers.{i + downsample}.downsample.', f'stages.{i}.downsample.') for i in range(3)),
        (f'{block}attn.', f'{ours}attn.w_msa.'),
        (f'{block}mlp.fc1.', f'{ours}ffn.layers.0.0.'),
        (f'{block}mlp.fc2.', f'{ours}ffn.layers.1.'),
        (block, ours),
        ('norm.', 'norm3.'),
    )


_SIGNATURE = 'layers.*.blocks.*.attn.relative_position_bias_table'
_TRANSFORMS = ((r'^layers\.\d+\.downsample\.', _merge),)

SWIN = Layout(
    name='Swin',
    signature=_SIGNATURE,
    marks=(r'(^|\.)layers\.0\.downsample\.reduction\.weight$',),
    rules=_rules(0),
    ignored=(r'^head\.', _FIXED, _PROMPTS),
    transforms=_TRANSFORMS,
    family='swin',
)

#: timm since 0.9: patches are merged at the beginning of a stage.
TIMM_SWIN = Layout(
    name='timm Swin',
    signature=_SIGNATURE,
    rules=_rules(1),
    ignored=(r'^head\.', _FIXED),
    transforms=_TRANSFORMS,
    family='swin',
)

MM_SWIN = Layout(
    name='OpenMMLab Swin',
    signature='stages.*.blocks.*.attn.w_msa.qkv.weight',
    rules=(('norm.', 'norm3.'),),  # of the first mmcls
    ignored=(r'^head\.', _FIXED),
    family='swin',
)

LAYOUTS = (SWIN, TIMM_SWIN, MM_SWIN)
