"""Loads pretrained weights into a backbone: converted, fitted to its sizes, all or nothing."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.argument_checks import check_patterns, is_int, is_list
from vpt_dense.errors import UserError, suggest
from vpt_dense.pretraining import NAME_KEY
from vpt_dense.tuning import is_added
from vpt_dense.weights import timm_fits
from vpt_dense.weights.grids import grids
from vpt_dense.weights.layouts import LAYOUTS, TIMM_LAYOUTS, Layout
from vpt_dense.weights.reading import read_source

#: Keys of ``init_cfg=dict(type='Pretrained', ...)``; mmengine's map_location changes nothing here.
_KEYS = (
    'type', 'checkpoint', 'prefix', 'allow_missing', 'source_grid', 'bands', 'prompts',
    'map_location',
)

#: Of several backbones in one file, the one with the first of these among the parts of its prefix.
_PREFERRED = ('base_encoder', 'teacher', 'backbone', 'encoder', 'visual', 'model', 'student')

#: What a backbone may be configured without: a ViT's final norms and cls token; the norms of
#: stages that are no output.
_STAGE_NORMS = tuple(f'norm{i}.{kind}' for i in range(4) for kind in ('weight', 'bias'))
_OPTIONAL = {
    'vit': ('ln1.weight', 'ln1.bias', 'ln2.weight', 'ln2.bias', 'cls_token', 'proj.weight'),
    'eva02': ('ln1.weight', 'ln1.bias', 'ln2.weight', 'ln2.bias', 'cls_token'),
    'swin': _STAGE_NORMS,
    'convnext': _STAGE_NORMS,
}

#: Buffers that are never loaded: they follow from the sizes of a backbone, or (the batches that a
#: batch norm has seen, which older files lack) nothing depends on them.
_COMPUTED = ('.relative_position_index', '.num_batches_tracked')

#: What a tensor that is left over or missing says about the config.
_HINTS = (
    (r'^\+register_tokens$', 'num_registers={0.shape[1]}'),
    (r'^-register_tokens$', 'num_registers=0'),
    (r'^\+reg_token$', 'reg_tokens={0.shape[1]}'),
    (r'^-reg_token$', 'reg_tokens=0'),
    (r'^\+pre_norm\.', 'pre_norm=True'),
    (r'^-pre_norm\.', 'pre_norm=False'),
    (r'^\+.*\.gamma[12]\.weight$', 'layer_scale_init_value=1e-5'),
    (r'^-.*\.gamma[12]\.weight$', 'layer_scale_init_value=0'),
    (r'^\+.*\.ffn\.w12\.', "layer_cfgs=dict(ffn_type='swiglu_fused')"),
    (r'^-ln1\.', 'final_norm=False'),
    (r'^-ln2\.', "out_type='featmap' or 'cls_token'"),
    (r'^-.*\.qkv\.bias$', 'qkv_bias=False'),
    (r'^-norm\d\.', r"init_cfg.allow_missing=[r'^norm\d\.'] (to start them anew)"),
)

#: The first convolution, by the names that it has in the families of backbones.
_KERNELS = (
    'patch_embed.projection.weight',
    timm_fits.KERNEL,
    'downsample_layers.0.0.weight',
    'conv1.weight',
    'stem.0.conv.weight',
)

#: What to set where the weights are those of another size.
_SIZES = {
    'vit': 'model.backbone.arch, patch_size and final_norm',
    'clip_text': 'model.head.text.arch, project_dims and context_length',
    'eva02': 'model.backbone.arch, patch_size and final_norm',
    'swin': 'model.backbone.arch and patch_size',
    'resnet': 'model.backbone.depth, stem_channels and base_channels',
    'convnext': 'model.backbone.arch and stem_patch_size',
    'timm': f'model.backbone.{NAME_KEY}',
}

#: What a band's part of the first convolution may be made of, in a list of ``init_cfg.bands``.
_BANDS = ('R', 'G', 'B', 'mean', 'zero')

#: What a state dict holds in place of frozen tensors (weights.base.KEY, which builds on this).
_REDUCED = 'frozen_base'


class Converted(NamedTuple):
    """Pretrained weights as a backbone takes them.

    Attributes:
        tensors: Name in the backbone -> tensor on the CPU, float32 (integers as they are), in the
            backbone's shapes.
        layout: Name of the format that the file has.
        report: What was used, changed, left out and created; one line.
        inexact: Names of tensors that may differ on another machine: in the last bit what a
            pseudo-inverse went into, which libraries compute in different orders; a kernel whose
            channels for an image prompt start at random.
    """

    tensors: dict[str, Tensor]
    layout: str
    report: str
    inexact: frozenset[str] = frozenset()


def compute(backbone: nn.Module, checkpoint: str, keys: dict | None = None) -> Converted:
    """Read pretrained weights of any known format and fit them to a backbone, which stays as it is.

    A frozen backbone cannot recover from a tensor that was dropped, so what is missing, left over
    or of another shape is an error; only what tuning adds (``prompt.*``, ``adapters.*``) need not
    be in the file. What is changed or left out is reported:

    - the position embedding, resized on its grid with the backbone's ``interpolate_mode``
      ('bicubic' or 'bilinear', half-pixel centres, no antialiasing: what the backbone does for
      images of other sizes); rows of cls and register tokens are kept. Where the file has rows for
      registers, they are added to the tokens; where it has none for cls, the row is zero: both
      exact;
    - a patch embedding of another patch size: FlexiViT's pseudo-inverse resize (Beyer et al., CVPR
      2023, https://arxiv.org/abs/2212.08013, section 3.4);
    - the patch embedding when ``in_channels`` differs, as ``bands`` says: 'repeat' (default),
      timm's rule, the bands are repeated in order and scaled by 3 / in_channels
      (https://huggingface.co/docs/timm/models, ``adapt_input_conv``); 'mean', every band gets the
      mean over R, G and B, scaled likewise; a list such as ``['B', 'G', 'R', 'mean']``, what each
      band gets, unscaled ('zero': nothing, so that the features start as those of R, G and B);
      'new': its kernel stays at its random start, and must be trained. Channels of an image prompt
      stay at their random start;
    - what the format names as its own head, decoder or mask token, what lies outside of the
      backbone, and a final norm or cls token if the backbone has none, are left out by name.

    Resizes are computed in float64 and rounded to float32 at the end, so that they come out the
    same on every machine.

    Args:
        backbone: A backbone with ``weights_family``: 'vit', 'eva02', 'swin', 'resnet',
            'convnext' or 'clip_text', with mmpretrain's names; or 'timm', with those of timm. Of
            its ``init_cfg``, if that is a ``dict(type='Pretrained', ...)`` with this checkpoint,
            further keys are read:
            ``allow_missing``, regular expressions of tensors that may stay at their random start;
            ``source_grid``, the (rows, columns) of the file's position embedding where it is not
            square; ``bands``, see above; ``prefix``, which of several backbones in the file is
            meant; ``prompts``, True: the file's prompts are loaded too, False (default): they are
            left out.
        checkpoint: Path or address, see :func:`vpt_dense.weights.read_state_dict`.
        keys: Those further keys, in place of the backbone's own.

    Returns:
        The tensors by the backbone's names, and the report.

    Raises:
        UserError: If the file cannot be had or read or does not fit; the message names the
            tensors.
    """
    options = _options(backbone, checkpoint, keys)
    source, wrappings = read_source(checkpoint)
    if any(name.rpartition('.')[2] == _REDUCED for name in source):
        raise UserError(
            f'{checkpoint} holds only what a run has tuned (a checkpoint or a delta), and is no '
            'file of pretrained weights; name it in load_from, with new_heads=True for another '
            'task, or complete it with tools/delta.py merge'
        )
    family = backbone.weights_family
    target = {
        name: tensor for name, tensor in backbone.state_dict().items()
        if not name.endswith(_COMPUTED)
    }
    kind = timm_fits.format_of_timms(source) if family == 'timm' else None
    if kind:
        layout, prefix, notes = Layout(name=kind, signature='', family='timm'), '', []
        tensors, origins = timm_fits.convert_by_timm(source, backbone, target, checkpoint, kind)
    else:
        layout, prefix = _recognise(source, checkpoint, options.get('prefix'), family)
        if layout.family != family:
            raise UserError(
                f'{checkpoint} holds a {layout.family} ({layout.name} format), the backbone '
                f'{type(backbone).__name__} is a {family}: choose weights of its kind'
            )
        masked = timm_fits.apply_bias_masks(source) if family == 'timm' else source
        tensors, origins, notes = _convert(masked, layout, prefix, target, checkpoint)
    if family == 'timm':
        moved = timm_fits.split_and_join(tensors, backbone, target, notes, checkpoint)
        origins = {old: moved.get(new, new) for old, new in origins.items()}
        timm_fits.drop_unused(tensors, target)
        options['layout'] = layout.name
    if not options.get('prompts'):
        tensors = {k: v for k, v in tensors.items() if not is_added(k)}
    kernel = _kernel_name(target)
    source_kernel = tensors.get(kernel)
    for fit in _FITS[family]:
        fit(tensors, backbone, target, notes, options)
    # Resized patches, or channels of an image prompt; further bands are exact.
    is_inexact = source_kernel is not None and kernel in tensors and (
        source_kernel.shape[2:] != tensors[kernel].shape[2:]
        or (_extra_channels(backbone) and source_kernel.shape[1] != tensors[kernel].shape[1])
    )
    for name in _OPTIONAL.get(family, ()):
        if name in tensors and name not in target:
            del tensors[name]
    ignored = [name for name in source if origins.get(name) not in tensors]

    created = [
        name for name in target
        if name not in tensors
        and (
            (is_added(name) and not options.get('prompts'))
            or _matches(options['allow_missing'], name)
            or (name == kernel and source_kernel is not None and options.get('bands') == 'new')
        )
    ]
    _check_fit(tensors, target, created, backbone, layout, checkpoint)
    tensors = {
        name: tensor.float().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    where = '.'.join(wrappings) + (f'[{prefix.rstrip(".")}]' if prefix else '')
    report = f'pretrained: {checkpoint} ({layout.name} layout{where and ", from " + where}), '
    report += f'{len(tensors)} tensors used'
    report += ''.join(f'; {note}' for note in notes)
    if ignored:
        report += f'; left out: {_group(ignored)}'
    if created:
        report += f'; created: {_group(created)}'
    inexact = frozenset([kernel] if is_inexact else [])
    return Converted(tensors, layout.name, report, inexact)


# --- options and recognition -----------------------------------------------------------------


def _options(backbone: nn.Module, checkpoint: str, keys: dict | None) -> dict:
    """Further keys of the backbone's ``init_cfg``, checked."""
    options = {'allow_missing': (), 'checkpoint': checkpoint, 'is_start': keys is None}
    init_cfg = getattr(backbone, 'init_cfg', None)
    if keys is not None:
        init_cfg = {'type': 'Pretrained', 'checkpoint': checkpoint, **keys}
    if not isinstance(init_cfg, dict) or init_cfg.get('type') != 'Pretrained':
        return options
    unknown = [key for key in init_cfg if key not in _KEYS]
    if unknown:
        raise UserError(
            f'init_cfg: Pretrained weights have no key {unknown[0]!r}{suggest(unknown[0], _KEYS)} '
            f'(known: {", ".join(_KEYS)})'
        )
    if init_cfg.get('checkpoint') != checkpoint:
        return options
    options.update({k: v for k, v in init_cfg.items() if v is not None})
    patterns = options['allow_missing']
    check_patterns(patterns, 'init_cfg.allow_missing')
    names = list(backbone.state_dict())
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(
                f'init_cfg.allow_missing: {pattern!r} matches no tensor of the backbone'
            )
    grid = options.get('source_grid')
    if grid is not None and not (
        is_list(grid) and len(grid) == 2 and all(is_int(n, 1) for n in grid)
    ):
        raise UserError(f'init_cfg.source_grid must be (rows, columns), found {grid!r}')
    bands = options.get('bands')
    listed = is_list(bands) and all(band in _BANDS for band in bands)
    if not listed and bands not in (None, 'repeat', 'mean', 'new'):
        raise UserError(
            "init_cfg.bands must be 'repeat', 'mean', 'new' or a list with one of "
            f'{", ".join(_BANDS)} for each band, found {bands!r}'
        )
    return options


def _recognise(
    source: dict[str, Tensor], checkpoint: str, wanted: str | None, family: str
) -> tuple[Layout, str]:
    """Find the format, and what stands before the backbone's names."""
    others = (layout for layout in LAYOUTS if layout.family not in ('vit', 'eva02'))
    layouts = (*others, *TIMM_LAYOUTS) if family == 'timm' else LAYOUTS
    for layout in layouts:
        prefixes = layout.prefixes(source)
        if not prefixes or (layout.own_family_alone and layout.family != family):
            continue
        if layout.refused:
            raise UserError(
                f'{checkpoint} ({layout.name} format) cannot be loaded: {layout.refused}; choose '
                'other weights'
            )
        return layout, _choose(prefixes, checkpoint, wanted)
    known = ', '.join(dict.fromkeys(layout.name for layout in layouts if not layout.refused))
    raise UserError(
        f'{checkpoint} holds no backbone of a known layout ({known}); '
        f'its tensors: {_shorten(list(source))}'
    )


def _choose(prefixes: list[str], checkpoint: str, wanted: str | None) -> str:
    """One backbone of the file."""
    if wanted is not None:
        wanted = wanted.rstrip('.') + '.' if wanted else ''
        if wanted not in prefixes:
            raise UserError(
                f'init_cfg.prefix={wanted!r}, but backbones of {checkpoint} begin with '
                f'{", ".join(map(repr, prefixes))}'
            )
        return wanted
    if len(prefixes) == 1 or '' in prefixes:
        return min(prefixes, key=len)
    for word in _PREFERRED:
        chosen = [prefix for prefix in prefixes if word in prefix.split('.')]
        if len(chosen) == 1:
            return chosen[0]
    raise UserError(
        f'{checkpoint} holds {len(prefixes)} backbones: {_shorten(prefixes)}; name one with '
        'init_cfg.prefix'
    )


# --- conversion ------------------------------------------------------------------------------


def _convert(
    source: dict[str, Tensor],
    layout: Layout,
    prefix: str,
    target: dict[str, Tensor],
    checkpoint: str,
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Rename, transform and join what the format does not ignore.

    Returns:
        The tensors by the target's names, the target's name of each tensor used, and notes.
    """
    pieces: dict[str, dict[int | None, tuple[str, Tensor]]] = {}
    origins, notes = {}, []
    for name, tensor in source.items():
        own = name.removeprefix(prefix)
        if not name.startswith(prefix) or layout.is_ignored(own):
            continue
        new, part = layout.to_target(own, target)
        origins[name] = new
        if part in pieces.setdefault(new, {}):
            raise UserError(f'{checkpoint}: two tensors for {new}, one of them {name}')
        pieces[new][part] = (name, tensor)
    tensors = {}
    for new, parts in pieces.items():
        try:
            ready = [
                layout.transform(name.removeprefix(prefix), tensor)
                for _, (name, tensor) in sorted(parts.items())
            ]
            tensors[new] = ready[0] if None in parts else torch.cat(ready)
        except (RuntimeError, IndexError, TypeError) as error:
            found = ', '.join(f'{name} {tuple(t.shape)}' for name, t in parts.values())
            raise UserError(
                f'{checkpoint}: {found} cannot become {new}: not the shapes of the {layout.name} '
                'format; the file is damaged or of another model'
            ) from error
    for name in layout.zeros:
        if name in target and name not in tensors:
            tensors[name] = torch.zeros_like(target[name], device='cpu', dtype=torch.float32)
            notes.append(f'{name} zero, as in its own model')
    return tensors, origins, notes


def _check_fit(
    tensors: dict[str, Tensor],
    target: dict[str, Tensor],
    created: list[str],
    backbone: nn.Module,
    layout: Layout,
    checkpoint: str,
) -> None:
    """Refuse what is missing, left over or of another shape."""
    missing = [name for name in target if name not in tensors and name not in created]
    unexpected = [name for name in tensors if name not in target]
    misfits = [
        f'{name} {tuple(tensors[name].shape)} instead of {tuple(target[name].shape)}'
        for name in target
        if name in tensors and tensors[name].shape != target[name].shape
    ]
    numberless = [
        name for name in tensors if name in target and not _is_sound(tensors[name], target[name])
    ]
    problems = [
        f'{len(names)} {what}: {_shorten(names)}'
        for what, names in (
            ('with NaN, infinite or integer values', numberless),
            ('of another shape', misfits),
            ('missing', missing),
            ('unexpected', unexpected),
        )
        if names
    ]
    if not problems:
        return
    hints = [
        hint.format(tensors.get(name))
        for sign, names in (('+', unexpected), ('-', missing))
        for name in names
        for pattern, hint in _HINTS
        if re.search(pattern, sign + name)
    ]
    # Whole blocks that are missing or left over say nothing but that the depth is another.
    other_depth = any(re.search(r'\.(ln1|norm1)\.weight$', name) for name in missing + unexpected)
    if hints and not other_depth:
        way_out = ', '.join(dict.fromkeys(hints)) + ' in model.backbone'
    else:
        way_out = f'{_SIZES[backbone.weights_family]} to those of the weights'
    raise UserError(
        f'{checkpoint} ({layout.name} layout) does not fit '
        f'{type(backbone).__name__}(arch of {_depth(backbone)} layers, width '
        f'{_width(backbone)}): {"; ".join(problems)}. Set {way_out}, or choose other weights'
    )


def _is_sound(tensor: Tensor, wanted: Tensor) -> bool:
    if not wanted.is_floating_point():
        return True
    return tensor.is_floating_point() and bool(torch.isfinite(tensor).all())


def _width(backbone: nn.Module) -> int:
    return backbone.embed_dim if backbone.weights_family == 'timm' else backbone.embed_dims


def _depth(backbone: nn.Module) -> int:
    if backbone.weights_family == 'timm':
        return len(backbone.blocks)
    return len(backbone.layers) if hasattr(backbone, 'layers') else sum(backbone.depths)


# --- fitting to the backbone's sizes ---------------------------------------------------------


def _fit_positions(
    tensors: dict[str, Tensor], backbone: nn.Module, target: dict, notes: list, options: dict
) -> None:
    """Bring rows and grid of a position embedding (1, extra + N, C) to those of the backbone."""
    positions = tensors.get('pos_embed')
    if positions is None or positions.ndim != 3 or positions.shape[-1] != backbone.embed_dims:
        return  # reported as missing or as a misfit
    has_cls = 'cls_token' in tensors
    registers = tensors.get('register_tokens')
    num_registers = 0 if registers is None else registers.shape[1]
    ways = grids(positions.shape[1], has_cls, num_registers, options.get('source_grid'))
    if len(ways) != 1:
        found = (
            f'{positions.shape[1]} rows, {int(has_cls)} cls and {num_registers} register tokens'
        )
        given = options.get('source_grid')
        raise UserError(
            f'{options["checkpoint"]}: the grid of the position embedding '
            f'({found}) '
            + (f'is not the {given[0]}x{given[1]} of init_cfg.source_grid' if given
               else 'is not square: set init_cfg.source_grid to its (rows, columns)')
        )
    extra, source_grid = ways[0]
    rows = positions.double()
    cls_row, rows = rows[:, : min(extra, int(has_cls))], rows[:, min(extra, int(has_cls)) :]
    if extra > int(has_cls):
        tensors['register_tokens'] = registers.double() + rows[:, :num_registers]
        rows = rows[:, num_registers:]
        notes.append('position rows of registers added to them')
    if backbone.num_extra_tokens == 0:
        if cls_row.shape[1]:
            notes.append('row of the cls token left out of the position embedding')
        cls_row = rows[:, :0]
    elif not cls_row.shape[1]:
        cls_row = rows.new_zeros(1, 1, rows.shape[-1])
        notes.append('no position of the cls token: zero')
    grid = tuple(backbone.patch_resolution)
    if grid != source_grid:
        notes.append(
            f'position embedding {source_grid[0]}x{source_grid[1]} -> {grid[0]}x{grid[1]} '
            f'({backbone.interpolate_mode})'
        )
        rows = rows.unflatten(1, source_grid).permute(0, 3, 1, 2)  # (1, C, h, w)
        rows = F.interpolate(rows, grid, mode=backbone.interpolate_mode, align_corners=False)
        rows = rows.flatten(2).transpose(1, 2)  # (1, N, C)
    tensors['pos_embed'] = torch.cat((cls_row, rows), dim=1)


def _kernel_name(target: Iterable[str]) -> str:
    """The name of the first convolution of a backbone, which every family has."""
    return next((name for name in _KERNELS if name in target), _KERNELS[0])


def _extra_channels(backbone: nn.Module) -> int:
    """Channels that an image prompt puts behind those of the image."""
    image_prompt = getattr(backbone, 'image_prompt', None)
    return 0 if image_prompt is None else image_prompt.extra_channels


def _fit_bands(
    tensors: dict[str, Tensor], backbone: nn.Module, target: dict, notes: list, options: dict
) -> None:
    """Bring the first convolution (C, bands, kh, kw) to the backbone's bands."""
    name = _kernel_name(target)
    kernel = tensors.get(name)
    if kernel is None or kernel.ndim != 4 or kernel.shape[0] != target[name].shape[0]:
        return  # reported as missing or as a misfit
    bands = target[name].shape[1] - _extra_channels(backbone)
    way = options.get('bands')
    if way is not None and kernel.shape[1] != 3:
        raise UserError(
            f'{options["checkpoint"]}: its {name} has {kernel.shape[1]} bands, and init_cfg.bands='
            f'{way!r} says what becomes of 3; leave it out'
        )
    fits = kernel.shape[1] in (bands, target[name].shape[1])
    if (fits and way is None) or kernel.shape[1] != 3:
        return
    if way == 'new':
        trains = dict(backbone.named_parameters())[name].requires_grad
        if not trains and options.get('is_start'):
            raise UserError(
                f"init_cfg.bands='new' leaves {name} at random, and it is frozen: add "
                f"r'^{name.split('.')[0]}\\.' to model.backbone.trainable")
        del tensors[name]
        how = 'new, at random'
    elif is_list(way):
        if len(way) != bands:
            raise UserError(
                f'init_cfg.bands={list(way)} is for {len(way)} bands, the backbone has '
                f'in_channels={bands}'
            )
        whole = kernel.double()
        parts = dict(zip('RGB', whole.unbind(1), strict=True), mean=whole.mean(1))
        parts['zero'] = torch.zeros_like(parts['mean'])
        tensors[name] = torch.stack([parts[part] for part in way], dim=1)
        how = ', '.join(way)
    elif way == 'mean':
        mean = kernel.double().mean(1, keepdim=True) * (3 / bands)
        tensors[name] = mean.repeat(1, bands, 1, 1)
        how = f'each the mean of R, G, B x 3/{bands}'
    else:
        from timm.models import adapt_input_conv  # half a second, and few have other bands

        tensors[name] = adapt_input_conv(bands, kernel)
        how = f'repeated and scaled by 3/{bands}' if bands > 1 else 'summed'
    what = 'patch embedding' if name.startswith('patch_embed') else 'first convolution'
    notes.append(f'{what} 3 -> {bands} bands ({how})')


def _fit_patches(
    tensors: dict[str, Tensor], backbone: nn.Module, target: dict, notes: list, options: dict
) -> None:
    """Bring a patch embedding (C, bands, ph, pw) to the backbone's patch size."""
    name = _kernel_name(target)
    kernel, wanted = tensors.get(name), target[name].shape
    if kernel is None or kernel.ndim != 4 or kernel.shape[0] != wanted[0]:
        return  # reported as missing or as a misfit
    fits = kernel.shape[1] in (wanted[1], wanted[1] - _extra_channels(backbone))
    if fits and kernel.shape[2:] != wanted[2:]:
        old, new = tuple(kernel.shape[2:]), tuple(wanted[2:])
        notes.append(
            f'patches {old[0]}x{old[1]} -> {new[0]}x{new[1]} pixels (pseudo-inverse resize)'
        )
        tensors[name] = resize_patch_embed(kernel, new)


def _fit_prompted_channels(
    tensors: dict[str, Tensor], backbone: nn.Module, target: dict, notes: list, options: dict
) -> None:
    """Leave the channels of an image prompt in the first convolution as the backbone has them."""
    name, extra = _kernel_name(target), _extra_channels(backbone)
    kernel = tensors.get(name)
    if not extra or kernel is None or kernel.ndim != 4:
        return
    own = target[name]
    if kernel.shape[:1] + kernel.shape[2:] == own.shape[:1] + own.shape[2:] and (
        kernel.shape[1] == own.shape[1] - extra
    ):
        tensors[name] = torch.cat((kernel, own[:, -extra:].detach().to(kernel)), dim=1)
        notes.append(f'{extra} channels of the image prompt in {name} at their start')


def resize_patch_embed(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a patch embedding with the pseudo-inverse of an image's resize.

    With B the matrix that resizes a patch x, the new kernel is w' = pinv(B^T) w: if patches are
    enlarged, <w', B x> = <w, x> for all x; if they are shrunk, it is the nearest in the least
    squares sense (FlexiViT, Beyer et al., CVPR 2023, https://arxiv.org/abs/2212.08013, section
    3.4). B is bicubic with antialiasing, as in ``timm.layers.resample_patch_embed``, which
    computes in float32; the authors' code has it bilinear.

    Args:
        kernel: (C, bands, ph, pw).
        size: The new (ph, pw).

    Returns:
        (C, bands, new ph, new pw), float64.
    """
    old = tuple(kernel.shape[2:])
    patches = torch.eye(math.prod(old), dtype=torch.float64).unflatten(1, old)[:, None]
    resized = F.interpolate(patches, size, mode='bicubic', antialias=True, align_corners=False)
    transposed = resized.flatten(1)  # B^T: (old pixels, new pixels)
    new = kernel.double().flatten(2) @ torch.linalg.pinv(transposed).T
    return new.unflatten(2, size)


def _fit_windows(
    tensors: dict[str, Tensor], backbone: nn.Module, target: dict, notes: list, options: dict
) -> None:
    """Bring a Swin's tables of position biases and its position embedding to its sizes.

    A table ((2 w - 1)^2, heads) of another window w is resized as an image of (2 w - 1)^2 pixels,
    bicubically: Microsoft's rule (https://github.com/microsoft/Swin-Transformer, utils.py).
    """
    sizes = {}
    for name, tensor in tensors.items():
        is_table = name.endswith('.relative_position_bias_table')
        if name not in target or not (is_table or name == 'absolute_pos_embed'):
            continue
        rows = tensor if is_table else tensor[0]  # (N, C)
        side = math.isqrt(len(rows))
        if is_table:
            grid = (math.isqrt(len(target[name])),) * 2
        else:
            grid = tuple(backbone.patch_resolution)
        if side * side != len(rows) or grid == (side, side):
            continue  # reported as a misfit, or fits
        image = rows.double().T.unflatten(1, (side, side))[None]  # (1, C, side, side)
        image = F.interpolate(image, grid, mode='bicubic', align_corners=False)[0]
        resized = image.flatten(1).T
        tensors[name] = resized if is_table else resized[None]
        if is_table:
            sizes[(side + 1) // 2, (grid[0] + 1) // 2] = None
        else:
            notes.append(f'position embedding {side}x{side} -> {grid[0]}x{grid[1]} (bicubic)')
    for old, new in sizes:
        notes.append(f'position biases for windows of {old}x{old} -> {new}x{new} (bicubic)')


#: What is done to the tensors of a family after their conversion, in this order.
_FITS = {
    'vit': (_fit_positions, _fit_bands, _fit_patches, _fit_prompted_channels),
    'eva02': (_fit_positions, _fit_bands, _fit_patches, _fit_prompted_channels),
    'timm': (timm_fits.fit_positions, _fit_bands, _fit_patches, _fit_prompted_channels),
    'clip_text': (),
    'swin': (_fit_windows, _fit_bands, _fit_patches, _fit_prompted_channels),
    'resnet': (_fit_bands, _fit_prompted_channels),
    'convnext': (_fit_bands, _fit_patches, _fit_prompted_channels),
}


# --- words -----------------------------------------------------------------------------------


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _group(names: list[str], limit: int = 4) -> str:
    """Names, those with the same first part as one where they are many."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.match(r'(module\.)?[^.]*', name)[0], []).append(name)
    return ', '.join(
        f'{first}.* ({len(group)})' if len(group) > limit else ', '.join(group)
        for first, group in groups.items()
    )


def _shorten(names: list[str], limit: int = 5) -> str:
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
