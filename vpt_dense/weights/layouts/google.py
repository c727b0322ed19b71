"""The .npz files of Google: the original ViT, AugReg, SAM, and big_vision's later ones.

Flax keeps the axes of a linear layer as (in, out), of a convolution as (height, width, in, out),
and heads apart. The reader turns the ``/`` of the names into dots.
"""

from torch import Tensor

from vpt_dense.weights.layouts.base import Layout


def _linear(kernel: Tensor) -> Tensor:
    """(in, out) -> (out, in)."""
    return kernel.T


def _into_heads(kernel: Tensor) -> Tensor:
    """(in, heads, d) -> (heads * d, in)."""
    return kernel.flatten(1).T


def _out_of_heads(kernel: Tensor) -> Tensor:
    """(heads, d, out) -> (out, heads * d)."""
    return kernel.flatten(0, 1).T


def _convolution(kernel: Tensor) -> Tensor:
    """(height, width, in, out) -> (out, in, height, width)."""
    return kernel.permute(3, 2, 0, 1)


def _rules(attention: str, norm2: str, mlp: str) -> tuple[tuple[str, str], ...]:
    """The numbers that Flax gave to the parts of a block by the order of their creation."""
    block = 'Transformer.encoderblock_*.'
    parts = (
        *(
            (f'{attention}.{name}.kernel', f'attn.qkv#{k}.weight')
            for k, name in enumerate(('query', 'key', 'value'))
        ),
        *(
            (f'{attention}.{name}.bias', f'attn.qkv#{k}.bias')
            for k, name in enumerate(('query', 'key', 'value'))
        ),
        (f'{attention}.out.kernel', 'attn.proj.weight'),
        (f'{attention}.out.bias', 'attn.proj.bias'),
        ('LayerNorm_0.scale', 'ln1.weight'),
        ('LayerNorm_0.bias', 'ln1.bias'),
        (f'{norm2}.scale', 'ln2.weight'),
        (f'{norm2}.bias', 'ln2.bias'),
        (f'{mlp}.Dense_0.kernel', 'ffn.layers.0.0.weight'),
        (f'{mlp}.Dense_0.bias', 'ffn.layers.0.0.bias'),
        (f'{mlp}.Dense_1.kernel', 'ffn.layers.1.weight'),
        (f'{mlp}.Dense_1.bias', 'ffn.layers.1.bias'),
    )
    return (
        *((block + left, 'layers.*.' + right) for left, right in parts),
        ('embedding.kernel', 'patch_embed.projection.weight'),
        ('embedding.bias', 'patch_embed.projection.bias'),
        ('Transformer.encoder_norm.scale', 'ln1.weight'),
        ('Transformer.encoder_norm.bias', 'ln1.bias'),
        ('Transformer.posembed_input.pos_embedding', 'pos_embed'),
        ('pos_embedding', 'pos_embed'),
        ('cls', 'cls_token'),
    )


GOOGLE = Layout(
    name='Google npz',
    signature='Transformer.encoderblock_*.MultiHeadDotProductAttention_1.query.kernel',
    rules=_rules('MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3'),
    ignored=(r'^head\.', r'^pre_logits\.', r'^MAPHead_0\.'),
    transforms=(
        (r'\.(query|key|value)\.kernel$', _into_heads),
        (r'\.(query|key|value)\.bias$', Tensor.flatten),
        (r'\.out\.kernel$', _out_of_heads),
        (r'\.Dense_\d\.kernel$', _linear),
        (r'^embedding\.kernel$', _convolution),
    ),
)

BIG_VISION = GOOGLE._replace(
    name='big_vision npz',
    signature='Transformer.encoderblock_*.MultiHeadDotProductAttention_0.query.kernel',
    rules=_rules('MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0'),
)

LAYOUTS = (GOOGLE, BIG_VISION)
