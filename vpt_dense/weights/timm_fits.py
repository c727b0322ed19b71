"""Fits pretrained weights to a backbone with timm's own modules and names.

One thing has several forms there: queries, keys and values in one layer or in three, with a bias
of their own each, in one piece, or none; positions with rows for cls and registers or without.
What is resized is resized as timm does it, in float64, so that it is the same on every machine.
"""

import contextlib
import io
import math
import re
import sys
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.errors import UserError
from vpt_dense.weights.grids import grids
from vpt_dense.weights.layouts.timm_models import CONVERTED_BY_TIMM

KERNEL = 'patch_embed.proj.weight'

#: What a backbone may lack, as its outputs do not need it: then it is left out by name.
OPTIONAL = re.compile(
    r'(norm|fc_norm|attn_pool|head|head_dist|pre_logits)\.|cls_token$|proj\.weight$')


def architecture(backbone: nn.Module) -> str:
    """The name that timm has for a model, without the tag."""
    return str(_pretrained_cfg(backbone).get('architecture') or '')


def _pretrained_cfg(backbone: nn.Module) -> dict[str, Any]:
    """What timm says of a model's weights; empty: it was not made by timm's ``create_model``."""
    return dict(getattr(backbone, 'pretrained_cfg', None) or {})


# --- formats that timm converts ----------------------------------------------------------------


def format_of_timms(source: Mapping[str, Tensor]) -> str | None:
    """The name of a format that timm's own code converts; None: it is none of these."""
    for name, mark in CONVERTED_BY_TIMM:
        if any(re.search(mark, key) for key in source):
            return name
    return None


class _Traced(Tensor):
    """A tensor that knows the names of those it was made from."""

    names: frozenset[str] = frozenset()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs or {})
        flat = [x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else [arg])]
        names = frozenset().union(*(x.names for x in flat if isinstance(x, _Traced)))
        for each in found if isinstance(found, (list, tuple)) else [found]:
            if isinstance(each, _Traced):
                each.names = names
        return found


class _Unsized:
    """What timm's converters ask of a model, without a grid: they leave sizes as they are."""

    pos_embed = head = None

    def __init__(self, kernel: torch.Size) -> None:
        self.patch_embed = SimpleNamespace(proj=SimpleNamespace(weight=SimpleNamespace(
            shape=kernel)))  # fmt: skip


def convert_by_timm(
    source: Mapping[str, Tensor], backbone: nn.Module, target: Mapping[str, Tensor],
    checkpoint: str, kind: str,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert with the ``checkpoint_filter_fn`` of the module that the model is from.

    Args:
        source: The file's tensors.
        backbone: Tells the model's name.
        target: Its tensors.
        checkpoint: The file, for messages.
        kind: Its format, for messages.

    Returns:
        The tensors by timm's names, sizes as in the file; and for each name of the file that was
        used one of the names that it went into.

    Raises:
        UserError: If timm cannot.
    """
    shape = next((t.shape for t in source.values() if t.ndim == 4), target[KERNEL].shape)
    traced = {}
    for name, tensor in source.items():
        traced[name] = tensor.as_subclass(_Traced)
        traced[name].names = frozenset([name])
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            converted = _module(backbone).checkpoint_filter_fn(traced, _Unsized(shape))
    except (LookupError, RuntimeError, ValueError, AttributeError) as error:
        raise UserError(
            f'{checkpoint} looks like {kind}, but timm cannot convert it for '
            f'{_name(backbone)} ({type(error).__name__}: {error}); choose other weights'
        ) from error
    origins = {old: new for new, tensor in converted.items()
               for old in getattr(tensor, 'names', ())}  # fmt: skip
    return {name: t.as_subclass(Tensor).detach() for name, t in converted.items()}, origins


def _module(backbone: nn.Module) -> ModuleType:
    """The module of timm that a model is from."""
    from timm.models import is_model, model_entrypoint

    name = architecture(backbone)
    if is_model(name):
        return sys.modules[model_entrypoint(name).__module__]
    classes = [c for c in type(backbone).__mro__ if c.__module__.startswith('timm.models.')]
    return sys.modules[classes[0].__module__]


def _name(backbone: nn.Module) -> str:
    return architecture(backbone) or type(backbone).__name__


# --- attention -------------------------------------------------------------------------------


def apply_bias_masks(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put into effect the masks of DINOv3's original files, which hold zero for the keys' bias."""
    masked = dict(source)
    for name, mask in source.items():
        bias = source.get(name.removesuffix('_mask'))
        if name.endswith('.qkv.bias_mask') and bias is not None and bias.shape == mask.shape:
            masked[name.removesuffix('_mask')] = torch.where(mask == 0, 0, bias * mask)
    return masked


def split_and_join(
    tensors: dict[str, Tensor], backbone: nn.Module, target: Mapping[str, Tensor],
    notes: list[str], checkpoint: str,
) -> dict[str, str]:
    """Bring queries, keys and values into the form of the backbone, in place.

    A bias that the backbone has no place for is left out if it is zero, which is exact. One that
    it has beside a missing one of the keys is zero if the file has none, as DINOv3's are.

    Args:
        tensors: By timm's names; any form.
        backbone: Tells the model's name.
        target: The backbone's tensors.
        notes: Get what was done.
        checkpoint: The file, for messages.

    Returns:
        A name that is no longer there -> one that it has become.

    Raises:
        UserError: If a bias is not zero and has no place.
    """
    moved: dict[str, str] = {}
    done: dict[str, None] = {}  # in order, once each
    attention = re.compile(r'(blocks\.\d+\.attn\.)(qkv|[qkv]_)')
    places = list(dict.fromkeys(m[1] for name in target if (m := attention.match(name))))
    for at in places:
        _weights(at, tensors, target, moved)
    # What is of another model altogether is reported as that, and not by its biases.
    fits = not any(name not in target and not OPTIONAL.match(name) and not name.endswith('bias')
                   for name in tensors)  # fmt: skip
    for at in places:
        refused = _biases(at, tensors, target, moved, done)
        if refused and fits:
            raise UserError(_no_place(at, refused, backbone, checkpoint))
    for kind in ('weight', 'bias'):  # of attention pooling
        joined = tensors.get(name := f'attn_pool.in_proj.{kind}')
        if joined is not None:
            del tensors[name]
            third = len(joined) // 3
            tensors[f'attn_pool.q.{kind}'] = joined[:third]
            tensors[f'attn_pool.kv.{kind}'] = joined[third:]
            moved[name] = f'attn_pool.kv.{kind}'
    notes += done
    return moved


def _weights(
    at: str, tensors: dict[str, Tensor], target: Mapping[str, Tensor], moved: dict[str, str]
) -> None:
    one, three = f'{at}qkv.weight', [f'{at}{q}_proj.weight' for q in 'qkv']
    if one in target and all(name in tensors for name in three):
        tensors[one] = torch.cat([tensors.pop(name) for name in three])
        moved.update(dict.fromkeys(three, one))
    elif three[0] in target and one in tensors:
        sizes = [len(target[name]) for name in three]
        if len(tensors[one]) == sum(sizes):
            tensors.update(zip(three, tensors.pop(one).split(sizes), strict=True))
            moved[one] = three[0]


def _biases(
    at: str, tensors: dict[str, Tensor], target: Mapping[str, Tensor], moved: dict[str, str],
    done: dict[str, None],
) -> str:
    """Bring the biases of one attention into form.

    Returns:
        Which of q, k and v has one that is not zero and has no place; empty: none.
    """
    forms = {q: (f'{at}{q}_bias', f'{at}{q}_proj.bias') for q in 'qkv'}
    joined = f'{at}qkv.bias'
    found = {q: name for q, names in forms.items() for name in names if name in tensors}
    places = {q: name for q, names in forms.items() for name in names if name in target}
    if joined in target:
        if joined in tensors or not found:
            return ''  # fits, or is reported as missing
        length = len(target[joined]) // 3
        parts = [tensors.pop(found[q]) if q in found else torch.zeros(length) for q in 'qkv']
        tensors[joined] = torch.cat(parts)
        moved.update(dict.fromkeys(found.values(), joined))
        if lacking := [q for q in 'qkv' if q not in found]:
            done[f'bias of {_words(lacking)} zero: the file has none'] = None
        return ''
    if joined in tensors:
        whole = tensors.pop(joined)
        values = dict(zip('qkv', whole.chunk(3), strict=True))
        moved[joined] = places.get('v', joined)
    else:
        values = {q: tensors.pop(name) for q, name in found.items()}
        moved.update({name: places[q] for q, name in found.items() if q in places})
    zero, absent = [], []
    for q in 'qkv':
        if q in places and q in values:
            tensors[places[q]] = values[q]
        elif q in places:
            # Of keys there is none in such models: a file without any is one of a model without.
            tensors[places[q]] = torch.zeros(target[places[q]].shape)
            absent.append(q)
        elif q in values and torch.count_nonzero(values[q]) == 0:
            zero.append(q)
        elif q in values:
            tensors[forms[q][0]] = values[q]
            return q
    if zero:
        done[f'bias of {_words(zero)} left out: all zero, hence exact'] = None
    if absent:
        done[f'bias of {_words(absent)} zero: the file has none'] = None
    return ''


def _no_place(at: str, q: str, backbone: nn.Module, checkpoint: str) -> str:
    from timm.models import is_model

    name = f'{architecture(backbone)}_qkvb'
    if q == 'k':
        way_out = 'choose weights without'
    elif is_model(name):
        way_out = f'choose the model {name} of timm, which has one'
    else:
        way_out = 'set qkv_bias=True in model.backbone, or choose other weights'
    return (
        f'{checkpoint}: the bias of {_words([q])} in {at.rstrip(".")} is not zero, and '
        f'{_name(backbone)} has none; {way_out}'
    )


def _words(letters: list[str]) -> str:
    words = [dict(q='queries', k='keys', v='values')[letter] for letter in letters]
    return ' and '.join((', '.join(words[:-1]), words[-1]) if words[1:] else words)


# --- positions -------------------------------------------------------------------------------


def fit_positions(
    tensors: dict[str, Tensor], backbone: nn.Module, target: dict, notes: list, options: dict
) -> None:
    """Bring rows and grid of ``pos_embed`` (1, extra + N, C) to those of the backbone.

    Rows for cls and registers come first, or there are none (``no_embed_class``). What has a row
    in the file alone gets it added; what has one in the backbone alone gets zeros: both exact.
    """
    rows, wanted = tensors.get('pos_embed'), target.get('pos_embed')
    if rows is None or wanted is None or rows.ndim != 3 or rows.shape[-1] != wanted.shape[-1]:
        return  # reported as missing or as a misfit
    prefix = [name for name in ('cls_token', 'reg_token', 'dist_token') if name in tensors]
    sizes = {name: tensors[name].shape[1] for name in prefix}
    has_cls = 'cls_token' in sizes
    num_others = sum(sizes.values()) - has_cls
    extra, grid = _source_grid(rows.shape[1], has_cls, num_others, backbone, options)
    before, rows = rows[:, :extra].double(), rows[:, extra:].double()
    own = tuple(backbone.patch_embed.grid_size)
    num_wanted = wanted.shape[1] - math.prod(own)
    if extra and not num_wanted:
        for name in prefix:
            row, before = before[:, : sizes[name]], before[:, sizes[name] :]
            if row.shape[1] and name in target:
                tensors[name] = tensors[name].double() + row
                notes.append(f'position of {name} added to it')
            elif row.shape[1]:
                notes.append(f'position of {name} left out')
        before = rows[:, :0]
    elif num_wanted > extra:
        zeros = rows.new_zeros(1, num_wanted - extra, rows.shape[-1])
        before = torch.cat((before, zeros), 1)
        notes.append(f'{num_wanted - extra} positions of cls and register tokens: zero')
    if grid != own:
        rows, how = _resized(rows, grid, own, backbone, options)
        notes.append(f'position embedding {grid[0]}x{grid[1]} -> {own[0]}x{own[1]} ({how})')
    tensors['pos_embed'] = torch.cat((before, rows), 1)


def _source_grid(
    rows: int, has_cls: bool, num_others: int, backbone: nn.Module, options: dict
) -> tuple[int, tuple[int, int]]:
    """Rows before the grid, and the grid, of a file's position embedding."""
    given = options.get('source_grid')
    ways = grids(rows, has_cls, num_others, given)
    if not ways and given is None:  # images of timm's file that are not square
        size = _pretrained_cfg(backbone).get('input_size') or (3, 0, 0)
        patch = backbone.patch_embed.patch_size
        sides = tuple(s // p for s, p in zip(size[1:], patch, strict=True))
        ways = grids(rows, has_cls, num_others, sides)
    if len(ways) != 1:
        raise UserError(
            f'{options["checkpoint"]}: the grid of the position embedding ({rows} rows, '
            f'{int(has_cls)} cls and {num_others} register tokens) '
            + (f'is not the {given[0]}x{given[1]} of init_cfg.source_grid' if given
               else 'is not square: set init_cfg.source_grid to its (rows, columns)')
        )
    return ways[0]


def _resized(
    rows: Tensor, grid: tuple[int, int], own: tuple[int, int], backbone: nn.Module, options: dict
) -> tuple[Tensor, str]:
    """Rows (1, h w, C) for another grid, as timm resizes those of this model; and how."""
    name = architecture(backbone)
    image = rows.unflatten(1, grid).permute(0, 3, 1, 2)  # (1, C, h, w)
    if 'flexi' in name or 'radio' in name:
        from timm.models import vision_transformer

        corners = any(part in name for part in vision_transformer._RADIO_ALIGN_CORNERS)
        # RADIO itself resizes to a square of the longer side, of which it takes the corner.
        size = (max(own),) * 2 if options['layout'] == 'C-RADIO' else own
        image = F.interpolate(image, size, mode='bilinear', align_corners=corners)
        image, how = image[..., : own[0], : own[1]], 'bilinear'
    else:
        image = F.interpolate(image, own, mode='bicubic', antialias=True)
        how = 'bicubic with antialiasing'
    return image.flatten(2).transpose(1, 2), how


def drop_unused(tensors: dict[str, Tensor], target: Mapping[str, Any]) -> None:
    """Leave out, in place, what the backbone does without; a classifier of other classes too."""
    for name in [name for name in tensors if OPTIONAL.match(name)]:
        others = name.startswith('head') and name in target and (
            tensors[name].shape != target[name].shape)
        if name not in target or others:
            del tensors[name]
