"""What timm says of pretrained weights: how images were prepared, where they are, their licence."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vpt_dense.errors import UserError

_TIMM = 'timm://'

#: What repositories of a hub call their weights, the safe kind first.
HUB_FILES = (
    'model.safetensors', 'open_clip_model.safetensors', 'open_clip_pytorch_model.safetensors',
    'pytorch_model.safetensors', 'pytorch_model.bin', 'open_clip_pytorch_model.bin', 'model.pth',
    'pytorch_model.pth',
)  # fmt: skip

#: Licences that ask for little; their name says it all.
_PERMISSIVE = ('apache-2.0', 'mit', 'bsd-3-clause')

#: What other licences bind their users to, in a few words that replace no reading.
_TERMS = {
    'dinov3-license': (
        'use and redistribution, of what is derived from them too, under the same agreement and '
        'with a copy of it; publications acknowledge DINOv3; no military use'
    ),
    'cc-by-nc-4.0': 'no commercial use',
    'fair-noncommercial-research-license': 'no commercial use',
}


class Pretraining(NamedTuple):
    """What timm's ``pretrained_cfg`` says of weights.

    Attributes:
        name: Of the model, with the tag of the weights: 'vit_small_patch16_dinov3.lvd1689m'.
        mean: Of each channel, R first, in 0..255, as data preprocessors take it.
        std: Likewise.
        interpolation: How images were resized, 'bicubic', say.
        crop_pct: The share of the resized image's side that was kept in tests.
        input_size: Channels, rows and columns of the images.
        licence: Its name as timm writes it; empty: not stated.
        hub_id: Repository of the Hugging Face hub; empty: none.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    input_size: tuple[int, int, int]
    licence: str
    hub_id: str


def of(model: str | Mapping[str, Any] | Any) -> Pretraining:
    """Look up what timm says of a model's weights.

    Args:
        model: A name of timm, with or without a tag or ``timm://``; a ``pretrained_cfg``; or a
            model that has one.

    Raises:
        UserError: If timm has no such model or weights.
    """
    cfg = _cfg(model)
    return Pretraining(
        name='.'.join(cfg[key] for key in ('architecture', 'tag') if cfg.get(key)),
        mean=tuple(round(x * 255, 6) for x in cfg['mean']),
        std=tuple(round(x * 255, 6) for x in cfg['std']),
        interpolation=cfg['interpolation'],
        crop_pct=cfg['crop_pct'],
        input_size=tuple(cfg['input_size']),
        licence=cfg.get('license') or '',
        hub_id=cfg.get('hf_hub_id') or '',
    )


def address(model: str | Mapping[str, Any] | Any) -> str:
    """Where the weights are that timm would load with ``pretrained=True``.

    Args:
        model: As for :func:`of`.

    Returns:
        An address for ``init_cfg.checkpoint``, see :func:`vpt_dense.weights.read_state_dict`: the
        ``file`` of the ``pretrained_cfg``, else ``timm://NAME.TAG`` if these are the weights that
        timm itself knows by that name, else the repository of the hub or the address that it names.

    Raises:
        UserError: If there are none.
    """
    cfg = _cfg(model)
    if file := cfg.get('file'):
        folder = Path(file).expanduser()
        inside = [folder / name for name in HUB_FILES if (folder / name).is_file()]
        return str(inside[0]) if inside else str(file)
    name = '.'.join(cfg[key] for key in ('architecture', 'tag') if cfg.get(key))
    places = ('hf_hub_id', 'hf_hub_filename', 'url')
    known = _registered(name)
    if known and any(known.get(key) for key in places) and all(
        (known.get(key) or None) == (cfg.get(key) or None) for key in places
    ):
        return _TIMM + name
    if cfg.get('hf_hub_id'):
        filename = cfg.get('hf_hub_filename')
        return f'hf://{cfg["hf_hub_id"]}' + (f'/{filename}' if filename else '')
    if url := cfg.get('url'):
        return url if isinstance(url, str) else url[0]
    raise UserError(
        f'timm has no pretrained weights of {name or "this model"}; name some in '
        'model.backbone.init_cfg.checkpoint'
    )


def licence_note(pretraining: Pretraining) -> str:
    """One line on the licence of weights: its name, and what it binds users to where it does."""
    licence = pretraining.licence
    start = f'licence of the pretrained weights {pretraining.name}: '
    if licence in ('', 'unknown'):
        return f'{start}timm states none; ask their authors before you use or share them'
    if licence in _PERMISSIVE:
        return start + licence
    terms = _TERMS.get(licence, 'with terms of its own, read them before you use or share them')
    return f'{start}{licence} ({terms})'


def of_config(backbone: Mapping[str, Any]) -> Pretraining | None:
    """What timm says of the weights that a backbone's config names.

    Args:
        backbone: ``model.backbone``.

    Returns:
        That of ``init_cfg.checkpoint`` if it is ``timm://NAME``; else, of a
        ``TimmVisionTransformer``, that of its model, whose weights its files are copies of; None:
        nothing is known.
    """
    init_cfg = backbone.get('init_cfg')
    checkpoint = init_cfg.get('checkpoint') if isinstance(init_cfg, Mapping) else None
    if isinstance(checkpoint, str) and checkpoint.startswith(_TIMM):
        name = checkpoint
    elif is_timms(backbone) and isinstance(backbone.get(NAME_KEY), str):
        name = backbone[NAME_KEY]
    else:
        return None
    try:
        return of(name)
    except UserError:
        return None  # building the model, or loading the weights, says so


#: The argument of ``TimmVisionTransformer`` that holds timm's name of the model.
NAME_KEY = 'model'


def notes(model: Mapping[str, Any], preprocessor: Mapping[str, Any] | None) -> list[str]:
    """What a user of a model's pretrained weights should know, a line each.

    Args:
        model: Its config.
        preprocessor: That of its data preprocessor.

    Returns:
        The licence of the weights; of a ``TimmVisionTransformer`` also where images are normalised
        in another way, or are of another size, than in pretraining.
    """
    backbone = model.get('backbone') or {}
    found = of_config(backbone)
    named = backbone.get('pretrained') or (backbone.get('init_cfg') or {}).get('checkpoint')
    if found is None or not named:
        return []
    lines = [licence_note(found)]
    if not is_timms(backbone):
        return lines
    preprocessor = preprocessor or {}
    for key in ('mean', 'std'):
        own, wanted = preprocessor.get(key), getattr(found, key)
        if own is not None and len(own) == len(wanted) and any(
            abs(a - b) > 0.01 for a, b in zip(own, wanted, strict=True)
        ):
            lines.append(
                f'model.data_preprocessor.{key} is {list(own)}, in the pretraining of {found.name} '
                f'it was {list(wanted)}; None takes that'
            )
    size = backbone.get('img_size') or preprocessor.get('size')
    size = [size, size] if isinstance(size, int) else size
    if size and tuple(size) != found.input_size[1:]:
        lines.append(
            f'images of {size[0]}x{size[1]} pixels, in the pretraining of {found.name} they were '
            f'{found.input_size[1]}x{found.input_size[2]}'
        )
    return lines


def is_timms(backbone: Mapping[str, Any]) -> bool:
    """Whether a config is of a backbone that holds a model of timm."""
    kind = backbone.get('type')
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2] == 'TimmVisionTransformer'


#: The arguments of ``TimmVisionTransformer`` that are not timm's.
OWN_KEYS = (
    'type', NAME_KEY, 'pretrained', 'img_size', 'in_channels', 'out_indices', 'out_type',
    'norm_outputs', 'rope_rescale', 'prompt', 'image_prompt', 'adapters', 'trainable',
    'prompts_as', 'memory', 'with_cp', 'frozen_dtype', 'init_cfg',
)  # fmt: skip


#: Name and arguments of models -> what :func:`architecture` has found; it takes up to a second.
_ARCHITECTURES: dict[str, tuple[int, int, int | None]] = {}


def architecture(backbone: Mapping[str, Any]) -> tuple[int, int, int | None] | None:
    """Width, blocks and attention heads of a ``TimmVisionTransformer``'s config.

    Returns:
        They; None: timm has no such model, which building it says.
    """
    import timm
    import torch

    name = str(backbone.get(NAME_KEY))
    if not timm.is_model(name.partition('.')[0]):
        return None
    arguments = {key: value for key, value in backbone.items() if key not in OWN_KEYS}
    asked = repr((name, arguments))
    if asked in _ARCHITECTURES:
        return _ARCHITECTURES[asked]
    try:
        with torch.device('meta'):
            model = timm.create_model(name, num_classes=0, **arguments)
    except Exception:  # noqa: BLE001  building it in earnest says what is wrong
        return None
    blocks = getattr(model, 'blocks', None)
    attention = getattr(blocks[0], 'attn', None) if blocks is not None and len(blocks) else None
    if blocks is None:
        return None
    found = model.num_features, len(blocks), getattr(attention, 'num_heads', None)
    _ARCHITECTURES[asked] = found
    return found


def patch_size(backbone: Mapping[str, Any]) -> Any:
    """The patch size of a vision transformer's config, in pixels, as said or by default."""
    named = re.search(r'patch(\d+)', str(backbone.get(NAME_KEY))) if is_timms(backbone) else None
    return backbone.get('patch_size', int(named[1]) if named else 16)


def _cfg(model: str | Mapping[str, Any] | Any) -> dict[str, Any]:
    """A ``pretrained_cfg`` as a plain dict."""
    if not isinstance(model, str):
        return dict(model if isinstance(model, Mapping) else model.pretrained_cfg)
    name = model.removeprefix(_TIMM)
    return timm_cfg(name, model).to_dict()


def timm_cfg(name: str, address: str) -> Any:
    """The ``PretrainedCfg`` that timm has for a model's name, with or without a tag.

    Raises:
        UserError: If it knows no such model or tag; the message names ``address``.
    """
    from timm.models import get_pretrained_cfg, is_model, list_models, list_pretrained

    architecture, _, tag = name.partition('.')
    if not is_model(architecture):
        raise UserError(
            f'{address}: timm has no model {architecture!r}'
            f'{_did_you_mean(architecture, list_models())}'
        )
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError as error:  # no such tag
        known = [n.partition('.')[2] for n in list_pretrained(f'{architecture}.*')]
        raise UserError(
            f'{address}: timm has no weights {tag!r} of {architecture}; it has: '
            f'{", ".join(known) or "none"}'
        ) from error
    if cfg is None:
        raise UserError(f'{address}: timm has no weights under this name')
    return cfg


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f'; did you mean {" or ".join(near)}?' if near else ''


def _registered(name: str) -> dict[str, Any] | None:
    from timm.models import get_pretrained_cfg, is_model

    if not is_model(name.partition('.')[0]):
        return None
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:  # no such tag
        return None
    return cfg.to_dict() if cfg else None
