"""Loading pretrained weights into a prompted vision transformer, completely or not at all."""

import math
import re

from mmengine.logging import print_log
from mmpretrain.models.utils import resize_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from vpt_dense.weights.layouts import LAYOUTS, Layout
from vpt_dense.weights.reading import read_state_dict


def load_pretrained(backbone: nn.Module, checkpoint: str) -> str:
    """Load a plain checkpoint into a backbone; only ``prompt.*`` may be missing from it.

    A frozen backbone cannot recover from a tensor that was dropped, so everything else that is
    missing, left over or of another shape is an error. Adapted on the way, and reported:

    - the position embedding, resized on its grid with the backbone's ``interpolate_mode``;
    - the patch embedding when ``in_channels`` differs: timm's rule, the bands are repeated in
      order and scaled by 3 / in_channels
      (https://huggingface.co/docs/timm/models, ``adapt_input_conv``);
    - what the layout names as its own head, and the final norm if the backbone has none, are left
      out by name.

    Args:
        backbone: A :class:`vpt_dense.backbones.PromptedVisionTransformer`.
        checkpoint: Path or address, see :func:`vpt_dense.weights.read_state_dict`.

    Returns:
        The report, one line; it is logged too.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file does not fit the backbone; the message names the tensors.
    """
    source = read_state_dict(checkpoint)
    layout = _recognise(source, checkpoint)
    target = backbone.state_dict()
    tensors, ignored = _convert(source, layout, target)
    notes = []
    if 'pos_embed' in tensors:
        tensors['pos_embed'] = _fit_pos_embed(tensors['pos_embed'], backbone, notes)
    kernel = 'patch_embed.projection.weight'
    if kernel in tensors:
        tensors[kernel] = _fit_bands(tensors[kernel], backbone, notes)

    created = [name for name in target if name not in tensors and name.startswith('prompt.')]
    missing = [name for name in target if name not in tensors and name not in created]
    unexpected = [name for name in tensors if name not in target]
    misfits = [
        f'{name} {tuple(tensors[name].shape)} instead of {tuple(target[name].shape)}'
        for name in target
        if name in tensors and tensors[name].shape != target[name].shape
    ]
    problems = [
        f'{len(names)} {what}: {_shorten(names)}'
        for what, names in (
            ('of another shape', misfits),
            ('missing', missing),
            ('unexpected', unexpected),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f'{checkpoint} ({layout.name} layout) does not fit '
            f'{type(backbone).__name__}(arch of {len(backbone.layers)} layers, width '
            f'{backbone.embed_dims}): {"; ".join(problems)}. Set model.backbone.arch, patch_size '
            'and final_norm to those of the weights, or choose other weights'
        )
    backbone.load_state_dict(tensors, strict=False)
    report = f'pretrained: {checkpoint} ({layout.name} layout), {len(tensors)} tensors used'
    report += ''.join(f'; {note}' for note in notes)
    if ignored:
        report += f'; left out: {", ".join(ignored)}'
    if created:
        report += f'; created: {", ".join(created)}'
    print_log(report, logger='current')
    return report


def _recognise(source: dict[str, Tensor], checkpoint: str) -> Layout:
    """Find the layout that names all parts that every vision transformer has."""
    for layout in LAYOUTS:
        if any(re.search(layout.signature, name) for name in source):
            return layout
    known = ', '.join(layout.name for layout in LAYOUTS)
    raise ValueError(
        f'{checkpoint} holds no vision transformer of a known layout ({known}); '
        f'its tensors: {_shorten(list(source))}'
    )


def _convert(
    source: dict[str, Tensor], layout: Layout, target: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the tensors to mmpretrain's names; return them and the names left out on purpose.

    Left out are heads, and what a backbone may be configured without: the final norm
    (``final_norm=False``) and the cls token (``with_cls_token=False``).
    """
    optional = {'ln1.weight', 'ln1.bias', 'cls_token'} - target.keys()
    tensors, ignored = {}, []
    in_backbone = any(name.startswith('backbone.') for name in source)
    for name, tensor in source.items():
        if in_backbone and not name.startswith('backbone.'):
            ignored.append(name)  # the head of a whole model
            continue
        new = name.removeprefix('backbone.')
        for pattern, replacement in layout.renames:
            new = re.sub(pattern, replacement, new)
        if re.search(layout.ignored, new) or new in optional:
            ignored.append(name)
        else:
            tensors[new] = tensor
    return tensors, ignored


def _fit_pos_embed(pos_embed: Tensor, backbone: nn.Module, notes: list[str]) -> Tensor:
    """Resize a square grid of position embeddings (1, cls + N, C) to the backbone's grid."""
    if pos_embed.ndim != 3 or pos_embed.shape[-1] != backbone.embed_dims:
        return pos_embed  # another width: reported as a misfit
    side = math.isqrt(pos_embed.shape[1])
    has_cls_row = side * side != pos_embed.shape[1]
    if has_cls_row and backbone.num_extra_tokens == 0:
        pos_embed = pos_embed[:, 1:]
        notes.append('row of the cls token left out of the position embedding')
    side = math.isqrt(pos_embed.shape[1] - backbone.num_extra_tokens)
    if side * side + backbone.num_extra_tokens != pos_embed.shape[1]:
        return pos_embed  # not a square grid: reported as a misfit
    height, width = backbone.patch_resolution
    if (height, width) == (side, side):
        return pos_embed
    notes.append(
        f'position embedding {side}x{side} -> {height}x{width} ({backbone.interpolate_mode})'
    )
    return resize_pos_embed(
        pos_embed,
        (side, side),
        (height, width),
        mode=backbone.interpolate_mode,
        num_extra_tokens=backbone.num_extra_tokens,
    )


def _fit_bands(weight: Tensor, backbone: nn.Module, notes: list[str]) -> Tensor:
    """Spread a patch embedding (C, 3, ph, pw) over another number of image bands."""
    wanted = backbone.patch_embed.projection.weight.shape
    others_differ = (weight.shape[0], *weight.shape[2:]) != (wanted[0], *wanted[2:])
    if weight.shape == wanted or others_differ or weight.shape[1] != 3:
        return weight  # what differs is reported as a misfit
    notes.append(f'patch embedding 3 -> {wanted[1]} bands (repeated and scaled by 3/{wanted[1]})')
    return adapt_input_conv(wanted[1], weight)


def _shorten(names: list[str], limit: int = 5) -> str:
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


