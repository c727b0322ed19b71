"""LoRA and DoRA as the folder that Hugging Face's PEFT writes and reads.

``adapter_config.json`` and ``adapter_model.safetensors``; tensors are called
``base_model.model.LAYER.lora_A.weight`` (r, in), ``....lora_B.weight`` (out, r) and, of DoRA,
``....lora_magnitude_vector`` (out,), LAYER being the name in the whole model, of which the tuned
backbone may be a part. PEFT need not be installed.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpt_dense import safe_files
from vpt_dense.adapters import DoRA, LoRA, PiSSA, SoMA
from vpt_dense.adapters.dora import Decomposed
from vpt_dense.adapters.lora import LowRank
from vpt_dense.adapters.pissa import Moved
from vpt_dense.errors import UserError
from vpt_dense.tuning import is_added
from vpt_dense.weights.base import frozen_bases

CONFIG, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
_KINDS = {'lora_A.weight': 'down', 'lora_B.weight': 'up'}
_MAGNITUDE = 'lora_magnitude_vector'

#: Keys of PEFT's config that are read here, or say nothing about what is computed.
_KNOWN = {
    'peft_type', 'r', 'lora_alpha', 'target_modules', 'lora_dropout', 'use_rslora', 'bias',
    'init_lora_weights', 'rank_pattern', 'alpha_pattern', 'modules_to_save', 'exclude_modules',
    'layers_to_transform', 'layers_pattern', 'auto_mapping', 'base_model_name_or_path', 'revision',
    'task_type', 'inference_mode', 'peft_version', 'megatron_core', 'qalora_group_size',
    'loftq_config', 'eva_config', 'ensure_weight_tying', 'runtime_config', 'use_dora',
}  # fmt: skip
#: Starts that leave the weights of the base alone.
_STARTS = (True, False, 'gaussian', 'eva', 'orthogonal', None)


# --- writing ---------------------------------------------------------------------------------


def write(model: nn.Module, folder: str | Path, heads: Sequence[str] = ()) -> None:
    """Write the LoRA or DoRA of a tuned model as a folder for PEFT.

    PiSSA and SoMA become a LoRA of twice the rank, of what they have changed since their start.

    Args:
        model: A tuned backbone, or a model with one in it; names in the files are this model's.
        folder: It is made if it is absent; the two files are written over.
        heads: Modules of ``model`` that are written whole, for PEFT's ``modules_to_save``: beside
            the backbone, or a head that its library has in it.

    Raises:
        UserError: If something was tuned that has no place in that format; the message names it.
    """
    prefix, backbone = _tuned(model)
    _check_heads(model, prefix, heads, 'heads')
    layers = _layers(backbone, [head.removeprefix(prefix) for head in heads])
    if not layers:
        raise UserError(f'{type(backbone).__name__} has no LoRA, PEFT would find nothing to load')
    is_dora = {_is_dora(update) for update in layers.values()}
    if len(is_dora) > 1:
        raise UserError('PEFT has one use_dora for all layers, found LoRA and DoRA in the adapters')
    (is_dora,) = is_dora
    lows = {f'{prefix}{name}': _low(update) for name, update in layers.items()}
    ranks = {name: low.down.shape[0] for name, low in lows.items()}
    alphas = {name: low.scale * ranks[name] for name, low in lows.items()}
    alphas = {name: round(a) if abs(a - round(a)) < 1e-9 else a for name, a in alphas.items()}
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    dropouts = {low.dropout.p for low in lows.values()}
    if len(dropouts) > 1:
        raise UserError(
            f'PEFT has one lora_dropout for all layers, found {sorted(dropouts)} in the adapters')
    base = getattr(getattr(model, 'config', None), '_name_or_path', None)
    config = dict(
        peft_type='LORA', base_model_name_or_path=base or None, bias='none', fan_in_fan_out=False,
        inference_mode=True, lora_alpha=alpha, lora_dropout=dropouts.pop(),
        modules_to_save=list(heads) or None, r=rank, target_modules=_targets(model, ranks),
        rank_pattern={re.escape(n): r for n, r in ranks.items() if r != rank},
        alpha_pattern={re.escape(n): a for n, a in alphas.items() if a != alpha},
        task_type=None, use_dora=is_dora, use_rslora=False)
    tensors = {
        f'{_PREFIX}{name}.{kind}': getattr(low, own)
        for name, low in lows.items() for kind, own in _KINDS.items()}
    for name, update in layers.items() if is_dora else ():
        before, _ = update.norms(backbone.get_submodule(name).weight)
        tensors[f'{_PREFIX}{prefix}{name}.{_MAGNITUDE}'] = before + update.magnitude.detach()
    for head in heads:
        state = model.get_submodule(head).state_dict()
        tensors |= {f'{_PREFIX}{head}.{name}': tensor for name, tensor in state.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safe_files.write_tensors(tensors, folder / TENSORS, dict(format='pt'))
    safe_files.write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + '\n')


def _is_dora(update: nn.Module) -> bool:
    return isinstance(update, Decomposed)


def _low(update: nn.Module) -> nn.Module:
    """The low-rank update within the change of a layer; of a pair and its start, that of both."""
    if not isinstance(update, Moved):
        return update.low if _is_dora(update) else update
    (number, rank), width = update.up.shape, update.down.shape[1]
    low = LowRank(width, number, 2 * rank, update.scale, dropout=0.0)
    low.down = nn.Parameter(torch.cat([update.down, update.first_down]).detach())
    low.up = nn.Parameter(torch.cat([update.up, -update.first_up], dim=1).detach())
    return low


def _tuned(model: nn.Module) -> tuple[str, nn.Module]:
    """The tuned backbone in a model, and what stands before its names."""
    found = list(frozen_bases(model))
    if len(found) != 1:
        raise UserError(
            f'{type(model).__name__} holds {len(found)} tuned backbones; it must be one')
    return found[0]


def _layers(backbone: nn.Module, heads: Sequence[str]) -> dict[str, nn.Module]:
    """Name of a layer -> its update; refuses all that is no LoRA of PEFT's kind, but for heads."""
    others = [backbone.prompt, backbone.image_prompt, *backbone.adapters]
    for part in others:
        if part is not None and type(part) not in (LoRA, DoRA, PiSSA, SoMA):
            raise UserError(
                f"PEFT's format of LoRA has no place for {type(part).__name__}; keep a delta")
    apart = tuple(f'{head}.' for head in heads)
    trained = [
        name for name, parameter in backbone.named_parameters()
        if parameter.requires_grad and not is_added(name) and not name.startswith(apart)]
    if trained:
        raise UserError(
            f"PEFT's format of LoRA has no place for {len(trained)} tensors of the backbone that "
            f'train ({trained[0]}, ...), as biases do; keep a delta')
    layers: dict[str, nn.Module] = {}
    for adapter in backbone.adapters:
        for name, update in zip(adapter.names, adapter.updates, strict=True):
            if any(update.padding):
                key = 'SoMA' if isinstance(adapter, SoMA) else 'adapters.parts'
                raise UserError(
                    f'{key}: {name} makes queries, keys and values at once, and PEFT '
                    'updates whole layers only; leave parts out, or keep a delta')
            if name in layers:
                raise UserError(f'{name} has two LoRA, PEFT takes one a layer; keep a delta')
            layers[name] = update
    return layers


def _targets(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The ends of names if these alone have them, else the names."""
    names = set(names)
    ends = {name.rpartition('.')[2] for name in names}
    known = {name for name, _ in model.named_modules() if name.rpartition('.')[2] in ends}
    return sorted(ends if known == names else names)


def _check_heads(model: nn.Module, prefix: str, heads: Sequence[str], key: str) -> None:
    """Refuse modules that are none, or that layers of transformers are in or belong to."""
    modules = dict(model.named_modules())
    blocks = [f'{prefix}{block.name}.' for block in modules[prefix[:-1]].block_list()]
    for head in heads:
        start = f'{head}.'
        near = any(block.startswith(start) or start.startswith(block) for block in blocks)
        if head not in modules or near or not head:
            raise UserError(f'{key}: {head} is no head of {type(model).__name__}')


# --- reading ---------------------------------------------------------------------------------


def adapters(
    folder: str | Path, model: nn.Module, backbone: nn.Module | None = None
) -> list[dict[str, Any]]:
    """The configs of adapters that a backbone is to be tuned with, for a folder of PEFT.

    Args:
        folder: The folder.
        model: The model that names in the folder are of, not tuned.
        backbone: The part of it that will be tuned; None: all of it.

    Returns:
        One LoRA or DoRA for each pair of rank and scale in the folder; then see :func:`load`.

    Raises:
        UserError: If the folder is damaged or asks for something that LoRA here does not do, or
            the model has no such layers; the message names the key or the tensor.
    """
    config, tensors = _read(folder)
    backbone = model if backbone is None else backbone
    prefix = next((f'{n}.' if n else '' for n, m in model.named_modules() if m is backbone), None)
    if prefix is None:
        raise UserError(f'{type(backbone).__name__} is no part of {type(model).__name__}')
    layers = _updates(folder, config, tensors)
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    groups: dict[tuple[int, float], list[str]] = {}
    for name, update in layers.items():
        if name not in linears or not name.startswith(prefix):
            raise UserError(
                f'{folder}: {name} is no linear layer of '
                f'{type(backbone).__name__}{prefix and f" ({prefix[:-1]})"}; is it of this model, '
                'and written with this version of its library?')
        rank = len(update['down'])
        groups.setdefault((rank, _alpha(config, name, rank)), []).append(
            name.removeprefix(prefix))
    _check_complete(folder, config, layers, linears)
    kind = 'vpt_dense.DoRA' if config.get('use_dora') else 'vpt_dense.LoRA'
    return [
        dict(type=kind, rank=rank, alpha=alpha,
             dropout=config.get('lora_dropout') or 0.0, targets=_patterns(backbone, names))
        for (rank, alpha), names in groups.items()]


def load(folder: str | Path, model: nn.Module, heads: bool = False) -> None:
    """Load a folder of PEFT into a model that was tuned with :func:`adapters`.

    Args:
        folder: The folder.
        model: The model that names in the folder are of.
        heads: Whether heads (``modules_to_save``) are loaded too.

    Raises:
        UserError: If the folder is damaged or does not fit; nothing is changed then.
    """
    config, tensors = _read(folder)
    saved = config.get('modules_to_save') or []
    if saved and not heads:
        raise UserError(
            f'{folder}: modules_to_save={saved} holds heads; load them too by heads=True')
    prefix, backbone = _tuned(model)
    _check_heads(model, prefix, saved, f'{folder}: modules_to_save')
    own = _layers(backbone, [head.removeprefix(prefix) for head in saved])
    updates = {
        name.removeprefix(prefix): each
        for name, each in _updates(folder, config, tensors).items()}
    if own.keys() != updates.keys():
        other = min(own.keys() ^ updates.keys())
        raise UserError(f'{folder}: {other} has a LoRA there or in the model, not in both')
    pairs = []
    for name, each in updates.items():
        if isinstance(own[name], Moved):
            raise UserError(
                f'{folder}: {name} of the model is updated by PiSSA or SoMA, whose start no such '
                'folder holds; tune the model with LoRA')
        if _is_dora(own[name]) != ('magnitude' in each):
            raise UserError(f'{folder}: {name} has a DoRA there or in the model, not in both')
        if _is_dora(own[name]) and each['magnitude'].shape == own[name].magnitude.shape:
            norm = backbone.get_submodule(name).weight.detach().double().norm(dim=1)
            each['magnitude'] = each['magnitude'].to(norm) - norm
        pairs += [(getattr(own[name] if kind == 'magnitude' else _low(own[name]), kind), tensor)
                  for kind, tensor in each.items()]
    for head in saved:
        state = model.get_submodule(head).state_dict()
        for name, tensor in state.items():
            key = f'{_PREFIX}{head}.{name}'
            if key not in tensors:
                raise UserError(f'{folder}: {TENSORS} lacks {key}')
            pairs.append((tensor, tensors[key]))
    for here, tensor in pairs:
        if here.shape != tensor.shape:
            there, wanted = tuple(tensor.shape), tuple(here.shape)
            raise UserError(f'{folder}: a tensor has shape {there}, the model {wanted}')
    with torch.no_grad():
        for here, tensor in pairs:
            here.copy_(tensor)


def _read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a folder, the config within what is known here."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(safe_files.check(path).read_text(encoding='utf-8'))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path} is no JSON: {error}') from error
    if not isinstance(config, dict) or config.get('peft_type') != 'LORA':
        kind = config.get('peft_type') if isinstance(config, dict) else config
        raise UserError(f'{path}: peft_type is {kind!r}, LORA alone can be read')
    if config.get('bias', 'none') != 'none':
        raise UserError(f"{path}: bias={config['bias']!r} cannot be read, 'none' can")
    if config.get('init_lora_weights') not in _STARTS:
        raise UserError(
            f"{path}: init_lora_weights={config['init_lora_weights']!r} has changed the base's "
            'weights; let PEFT merge it')
    for key, value in config.items():
        if key not in _KNOWN and value:
            raise UserError(f'{path}: {key}={value!r} is not known here; let PEFT merge it')
    return config, safe_files.read(Path(folder) / TENSORS)['state_dict']


def _updates(
    folder: str | Path, config: dict[str, Any], tensors: dict[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Layer -> ``down`` (r, in), ``up`` (out, r) and, of DoRA, ``magnitude`` (out,)."""
    kinds = dict(_KINDS, **({_MAGNITUDE: 'magnitude'} if config.get('use_dora') else {}))
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf'{re.escape(_PREFIX)}(.+)\.(lora_.+)', key)
        if match and match[2] in kinds:
            found.setdefault(match[1], {})[kinds[match[2]]] = tensor
        elif '.lora_' in key or not key.startswith(_PREFIX):
            raise UserError(f'{folder}: {key} is not known here; let PEFT merge it')
    for name, each in found.items():
        shapes = [tuple(each[kind].shape) for kind in ('down', 'up') if kind in each]
        if len(shapes) < 2 or any(len(shape) != 2 for shape in shapes) or (
                len(each['down']) != each['up'].shape[1]):
            raise UserError(f'{folder}: {name} has lora_A and lora_B of shapes {shapes}')
        if len(each) < len(kinds):
            raise UserError(f'{folder}: use_dora=True, but {TENSORS} lacks {name}.{_MAGNITUDE}')
    return found


def _alpha(config: dict[str, Any], name: str, rank: int) -> float:
    """The alpha of LoRA here, whose scale is alpha / rank."""
    patterns = config.get('alpha_pattern') or {}
    found = [a for p, a in patterns.items() if re.match(rf'(.*\.)?({p})$', name)]
    alpha = float(found[0] if found else config.get('lora_alpha', 8))
    return alpha * math.sqrt(rank) if config.get('use_rslora') else alpha


def _check_complete(
    folder: str | Path, config: dict[str, Any], layers: Iterable[str], linears: Iterable[str]
) -> None:
    """Refuse a folder that lacks layers which its config names, as PEFT matches them."""
    targets = config.get('target_modules')
    if any(config.get(k) for k in ('exclude_modules', 'layers_to_transform', 'layers_pattern')):
        return  # these take away some
    if isinstance(targets, str):
        named = {name for name in linears if re.fullmatch(targets, name)}
    else:
        ends = tuple(f'.{target}' for target in targets or ())
        named = {name for name in linears if f'.{name}'.endswith(ends)}
    lacking = named - set(layers)
    if lacking and targets != 'all-linear':
        raise UserError(
            f'{folder}: target_modules names {min(lacking)}, but {TENSORS} has no LoRA of it')


def _patterns(backbone: nn.Module, names: Sequence[str]) -> list[str]:
    """Patterns of LoRA's ``targets`` that match these layers alone."""
    found = _targets(backbone, names)
    start = r'(^|\.)' if set(found) != set(names) else '^'
    return [rf'{start}({"|".join(map(re.escape, found))})$']
