"""The image towers of CLIP: OpenAI's and open_clip's names, which are the same.

The projection into the space that images share with texts is left out, and so is the tower of
texts. The embedding of the class token and that of the positions lack the axis of the batch.
"""

from collections.abc import Callable

from torch import Tensor

from vpt_dense.weights.layouts.base import Layout


def _rules(prefix: str) -> tuple[tuple[str, str], ...]:
    rules = (
        ('class_embedding', 'cls_token'),
        ('positional_embedding', 'pos_embed'),
        ('conv1.', 'patch_embed.projection.'),
        ('ln_pre.', 'pre_norm.'),
        ('ln_post.', 'ln1.'),
        ('transformer.resblocks.*.attn.in_proj_weight', 'layers.*.attn.qkv.weight'),
        ('transformer.resblocks.*.attn.in_proj_bias', 'layers.*.attn.qkv.bias'),
        ('transformer.resblocks.*.attn.out_proj.', 'layers.*.attn.proj.'),
        ('transformer.resblocks.*.ln_1.', 'layers.*.ln1.'),
        ('transformer.resblocks.*.ln_2.', 'layers.*.ln2.'),
        ('transformer.resblocks.*.mlp.c_fc.', 'layers.*.ffn.layers.0.0.'),
        ('transformer.resblocks.*.mlp.c_proj.', 'layers.*.ffn.layers.1.'),
        ('transformer.resblocks.*.ls_1.gamma', 'layers.*.attn.gamma1.weight'),
        ('transformer.resblocks.*.ls_2.gamma', 'layers.*.ffn.gamma2.weight'),
    )
    return tuple((prefix + left, right) for left, right in rules)


def _add_batch(tensor: Tensor) -> Tensor:
    """(C,) -> (1, 1, C); (1 + N, C) -> (1, 1 + N, C)."""
    return tensor.reshape(1, -1, tensor.shape[-1])


_TRANSFORMS: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    (r'(class|positional)_embedding$', _add_batch),
)

#: A whole CLIP: what is not of the image tower is left out.
CLIP = Layout(
    name='CLIP',
    signature='visual.transformer.resblocks.*.attn.in_proj_weight',
    rules=_rules('visual.'),
    ignored=(r'^(?!visual\.)', r'^visual\.proj$'),
    transforms=_TRANSFORMS,
)

#: The image tower alone; the text tower, which bears the same names, has no `conv1`.
CLIP_VISUAL = Layout(
    name='CLIP image tower',
    signature='transformer.resblocks.*.attn.in_proj_weight',
    marks=(r'(^|\.)conv1\.weight$',),
    rules=_rules(''),
    ignored=(r'^proj$',),
    transforms=_TRANSFORMS,
)

LAYOUTS = (CLIP, CLIP_VISUAL)
