"""The towers of CLIP: OpenAI's and open_clip's names, which are the same.

The embedding of the class token and that of the positions lack the axis of the batch; projections
into the space that images share with texts are matrices that tokens are multiplied by, the other
way round than the weight of a linear layer. A plain vision transformer has no projection.
"""

from collections.abc import Callable

from torch import Tensor

from vpt_dense.weights.layouts.base import Layout

_BLOCKS = (
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


def _rules(prefix: str) -> tuple[tuple[str, str], ...]:
    rules = (
        ('class_embedding', 'cls_token'),
        ('positional_embedding', 'pos_embed'),
        ('conv1.', 'patch_embed.projection.'),
        ('ln_pre.', 'pre_norm.'),
        ('ln_post.', 'ln1.'),
        ('proj', 'proj.weight'),
        *_BLOCKS,
    )
    return tuple((prefix + left, right) for left, right in rules)


def _text_rules(prefix: str) -> tuple[tuple[str, str], ...]:
    rules = (
        ('token_embedding.', 'token_embedding.'),
        ('positional_embedding', 'pos_embed'),
        ('ln_final.', 'ln1.'),
        ('text_projection', 'proj.weight'),
        *_BLOCKS,
    )
    return (*((prefix + left, right) for left, right in rules), ('logit_scale', 'logit_scale'))


def _add_batch(tensor: Tensor) -> Tensor:
    """(C,) -> (1, 1, C); (1 + N, C) -> (1, 1 + N, C)."""
    return tensor.reshape(1, -1, tensor.shape[-1])


def _transposed(tensor: Tensor) -> Tensor:
    """(C, D) -> (D, C)."""
    return tensor.T


_TRANSFORMS: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    (r'(class|positional)_embedding$', _add_batch),
    (r'(^|\.)(text_projection|proj)$', _transposed),
)

#: A whole CLIP: what is not of the image tower is left out.
CLIP = Layout(
    name='CLIP',
    signature='visual.transformer.resblocks.*.attn.in_proj_weight',
    rules=_rules('visual.'),
    ignored=(r'^(?!visual\.)',),
    transforms=_TRANSFORMS,
)

#: The image tower alone; the text tower, which bears the same names, has no `conv1`.
CLIP_VISUAL = Layout(
    name='CLIP image tower',
    signature='transformer.resblocks.*.attn.in_proj_weight',
    marks=(r'(^|\.)conv1\.weight$',),
    rules=_rules(''),
    transforms=_TRANSFORMS,
)

_TEXT = dict(transforms=_TRANSFORMS, family='clip_text', own_family_alone=True)
#: What is of no text tower; SigLIP's `logit_bias` is: its texts are scored another way.
_NOT_OF_TEXTS = (
    r'^visual\.', r'(^|\.)attn_mask$', r'^(input_resolution|context_length|vocab_size)$')

#: A whole CLIP whose text tower is a module of its own (open_clip's ``custom_text``).
CUSTOM_TEXT = Layout(
    name='CLIP text tower',
    # Not that of a block, which bears the same name in the image tower.
    signature='text.token_embedding.weight',
    marks=(r'(^|\.)transformer\.resblocks\.0\.ln_1\.weight$',),
    rules=_text_rules('text.'),
    ignored=_NOT_OF_TEXTS,
    **_TEXT,
)

#: A whole CLIP, OpenAI's and most of open_clip's.
TEXT = CUSTOM_TEXT._replace(signature='token_embedding.weight', rules=_text_rules(''))

TEXT_LAYOUTS = (CUSTOM_TEXT, TEXT)
LAYOUTS = (CLIP, CLIP_VISUAL)
