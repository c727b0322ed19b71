"""How the libraries of the field name the tensors of a vision transformer."""

from typing import NamedTuple


class Layout(NamedTuple):
    """One library's names, as patterns.

    Attributes:
        name: The library.
        signature: A pattern that a tensor's name matches in this layout only.
        renames: (pattern, replacement) pairs, applied in order, that give mmpretrain's names.
        ignored: A pattern of (renamed) tensors that no backbone has: classification heads.
    """

    name: str
    signature: str
    renames: tuple[tuple[str, str], ...]
    ignored: str


LAYOUTS = (
    Layout(
        name='mmpretrain',
        signature=r'^(backbone\.)?layers\.\d+\.attn\.qkv\.weight$',
        renames=(),
        ignored=r'^head\.',
    ),
    Layout(
        name='timm',
        signature=r'^(backbone\.)?blocks\.\d+\.attn\.qkv\.weight$',
        renames=(
            (r'^patch_embed\.proj\.', 'patch_embed.projection.'),
            (r'^blocks\.(\d+)\.norm1\.', r'layers.\1.ln1.'),
            (r'^blocks\.(\d+)\.norm2\.', r'layers.\1.ln2.'),
            (r'^blocks\.(\d+)\.mlp\.fc1\.', r'layers.\1.ffn.layers.0.0.'),
            (r'^blocks\.(\d+)\.mlp\.fc2\.', r'layers.\1.ffn.layers.1.'),
            (r'^blocks\.', 'layers.'),
            (r'^norm\.', 'ln1.'),
        ),
        # Heads of IN-1k and IN-21k classifiers, and the latter's tanh layer before it.
        ignored=r'^(head|pre_logits)\.',
    ),
)
