"""Files that hold what was tuned: a few megabytes, hashed against the weights they belong to."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vpt_dense import few_bits, pretraining, safe_files
from vpt_dense.backbones.in_place import Adopted, InPlaceBackbone
from vpt_dense.errors import UserError
from vpt_dense.plain import models
from vpt_dense.version import __version__
from vpt_dense.weights.base import Base, fingerprint

FORMAT = safe_files.PLAIN_DELTA


def save_delta(model: nn.Module, path: str | Path, **told: Any) -> int:
    """Write what was tuned of a model.

    That is all of its state but the frozen tensors of tuned backbones, of which the SHA-256 is
    written. Equal models give equal bytes.

    Args:
        model: A tuned backbone, or a model that holds some (and a head).
        path: A ``.safetensors`` file; what is there is replaced when all is written.
        **told: Further metadata of your own, plain data: ``classes=['cat', 'dog']``.

    Returns:
        Bytes of the file.

    Raises:
        UserError: If the name ends otherwise, nothing of the model is tuned, it is sharded, or it
            cannot be written.

    Example:
        >>> import timm, vpt_dense
        >>> model = vpt_dense.tune(timm.create_model('deit_tiny_patch16_224'), 'deep')
        >>> size = vpt_dense.save_delta(model, 'tuned.safetensors')
        >>> vpt_dense.load_delta(vpt_dense.untune(model), 'tuned.safetensors') is model
        True
    """
    if Path(path).suffix != '.safetensors':
        raise UserError(f'{path}: deltas are .safetensors files, give it that ending')
    model = unwrapped(model)
    state = model.state_dict()
    backbones = {}
    for prefix, backbone in tuned(model).items():
        frozen = _frozen(backbone, prefix, state)
        for name in frozen:
            del state[prefix + name]
        source = backbone.base
        record = Base(
            checkpoint=source.checkpoint if source else '', layout=source.layout if source else '',
            sha256=fingerprint(frozen), tensors=len(frozen),
            parameters=sum(tensor.numel() for tensor in frozen.values()), arch=backbone.describe(),
            keys=source.keys if source else {})
        backbones[prefix] = dict(
            method=backbone.settings, origin=backbone.origin, base=dataclasses.asdict(record),
            licence=_licence(backbone))
    meta = dict(
        format=FORMAT, backbones=backbones, builder=getattr(model, 'builder', None),
        counts=models.count(model), versions=dict(vpt_dense=__version__), told=told)
    meta = {key: value if key == 'format' else _as_text(key, value) for key, value in meta.items()}
    safe_files.write_tensors(few_bits.pack(state), path, meta)
    return Path(path).stat().st_size


def load_delta(model: nn.Module, path: str | Path) -> nn.Module:
    """Load what was tuned into a model; all or nothing.

    Args:
        model: As it was saved; a backbone that is not tuned yet is tuned as the file says.
        path: A file of :func:`save_delta`.

    Returns:
        The same object.

    Raises:
        UserError: If the file is damaged, of another model or method, or its frozen weights are
            others; the model is then what it was.
    """
    content = read(path)
    wanted = content['meta']['backbones']
    given, model, tuned_here = model, unwrapped(model), []
    found = _find(model)
    if not set(found) <= set(wanted):
        raise UserError(
            f'{path} is of tuned backbones {sorted(wanted)}, the model has {sorted(found)} (names '
            'in the model)')
    try:
        for prefix, record in wanted.items():
            place = model.get_submodule(prefix.rstrip('.')) if _has(model, prefix) else None
            if place is None:
                raise UserError(f'{path} has a backbone {prefix!r}, which the model lacks')
            if not isinstance(place, Adopted):
                models.take_over(place, record['method'])
                tuned_here.append(place)
        _load(model, content, path)
    except BaseException:
        for place in tuned_here:
            place.give_back()
        raise
    return given


def _load(model: nn.Module, content: dict, path: str | Path) -> None:
    """Check, then load."""
    state, wanted = content['state_dict'], content['meta']['backbones']
    own = model.state_dict()
    whole = dict(own)
    for prefix, backbone in _find(model).items():
        record = Base.from_dict(wanted[prefix]['base'])
        frozen = {name: tensor for name, tensor in _frozen(backbone, prefix, own).items()
                  if prefix + name not in state}  # fmt: skip
        digest = fingerprint(frozen)
        if digest != record.sha256:
            raise UserError(
                f'{path} was tuned on other weights ({record.checkpoint or record.arch}, '
                f'{record.tensors} tensors): the SHA-256 of the model\'s {len(frozen)} frozen '
                f'tensors ({backbone.describe()}) is {digest}, but it needs {record.sha256}')
        for name in frozen:
            del whole[prefix + name]
    lacking = [name for name in whole if name not in state]
    more = [name for name in state if name not in whole]
    others = [
        f'{name} {tuple(state[name].shape)} instead of {tuple(whole[name].shape)}'
        for name in whole if name in state and state[name].shape != whole[name].shape]
    problems = [
        f'{len(names)} {what} ({names[0]}{", ..." if names[1:] else ""})'
        for what, names in (('missing', lacking), ('too many', more), ('of another shape', others))
        if names]
    if problems:
        raise UserError(
            f'{path} does not fit the model: {", ".join(problems)}; tune it with '
            f'the method of the file: {[record["method"] for record in wanted.values()]}')
    model.load_state_dict({**own, **state})


def load(path: str | Path, base: str | None = None, device: str = 'cpu') -> nn.Module:
    """Build the model of a file of :func:`save_delta` and load it.

    Args:
        path: A file of a model that :func:`create_backbone`, ``create_classifier`` or
            ``create_segmentor`` built.
        base: The pretrained weights, where they are not at the place that the file names.
        device: Where the model goes.

    Returns:
        The model in eval mode.

    Raises:
        UserError: If the file is of a model that was built otherwise, its weights cannot be had, or
            see :func:`load_delta`.
    """
    content = read(path)
    record = next(iter(content['meta']['backbones'].values()))
    source = base or record['base']['checkpoint']
    model = build(content, path, pretrained=bool(source), checkpoint=source or None)
    return load_delta(model, path).to(device).eval()


def is_built(content: dict[str, Any]) -> bool:
    """Whether a file, as :func:`read` returns it, is of a model that this package built."""
    ((prefix, record), *others) = content['meta']['backbones'].items()
    builder = content['meta'].get('builder')
    return record['origin'] is not None and not others and (builder is not None or not prefix)


def build(content: dict[str, Any], path: str | Path, **options: Any) -> nn.Module:
    """Build the model that a file is of, without what was tuned.

    Args:
        content: Of the file, see :func:`read`.
        path: For messages.
        **options: ``pretrained`` and ``checkpoint``, see :func:`create_backbone`.

    Raises:
        UserError: If the file is of a model that was built otherwise.
    """
    if not is_built(content):
        raise UserError(
            f'{path} is of a model of your own: build it, then vpt_dense.load_delta(model, path)')
    (record,), builder = content['meta']['backbones'].values(), content['meta'].get('builder')
    origin = record['origin']
    options.update(
        method=record['method'], img_size=origin['img_size'], in_chans=origin['in_chans'],
        model_options=origin['options'])
    if builder is None:
        return models.create_backbone(origin['name'], **options)
    from vpt_dense.plain import tasks

    return tasks.BUILDERS[builder['task']](origin['name'], **options, **builder['arguments'])


def check_arguments(**arguments: Any) -> None:
    """Refuse what only the files of configs know.

    Raises:
        UserError: If one is set.
    """
    for name, value in arguments.items():
        if value:
            raise UserError(f'load: {name}={value!r} is for the checkpoints and deltas of configs')


def read(path: str | Path) -> dict[str, Any]:
    """The tensors (``state_dict``) and metadata (``meta``) of a file of :func:`save_delta`.

    Raises:
        UserError: If it is none, or damaged.
    """
    content = safe_files.read(str(path))
    meta = content.get('meta') if isinstance(content, dict) else None
    if not isinstance(meta, dict) or meta.get('format') != FORMAT:
        raise UserError(f'{path} is no delta that vpt_dense.save_delta wrote')
    records = meta.get('backbones')
    if not isinstance(records, dict) or not records or not all(
        isinstance(record, dict) and {'method', 'origin', 'base'} <= set(record)
        for record in records.values()
    ):
        raise UserError(f'{path} is damaged, or of a later version of vpt_dense: it does not say '
                        'which backbones it is of')
    return content


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside what ``torch.compile`` and (Distributed)DataParallel return.

    Raises:
        UserError: If its parameters are spread over processes.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif '_orig_mod' in model._modules:
            model = model._orig_mod
        else:
            break
    spread = sys.modules.get('torch.distributed.tensor')  # not every build of torch has it
    if spread is not None and any(isinstance(p, spread.DTensor) for p in model.parameters()):
        raise UserError(
            'the parameters of this model are spread over processes (fully_shard): gather what '
            'trains with torch.distributed.checkpoint.state_dict.get_model_state_dict, load it '
            'into a model of one process and take that, see docs/pytorch.md')
    return model


def tuned(model: nn.Module) -> dict[str, InPlaceBackbone]:
    """The tuned backbones in a model, by the prefix of their names.

    Raises:
        UserError: If there are none.
    """
    found = _find(model)
    if not found:
        raise UserError(
            f'nothing of this {type(model).__name__} is tuned; call vpt_dense.tune(backbone) first')
    return found


def _find(model: nn.Module) -> dict[str, InPlaceBackbone]:
    return {
        f'{name}.' if name else '': module for name, module in model.named_modules()
        if isinstance(module, InPlaceBackbone)}


def _frozen(
    backbone: InPlaceBackbone, prefix: str, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The frozen tensors of a backbone; those that are held in half precision as they came."""
    backbone.note_frozen()
    own = {name: state[prefix + name] for name in sorted(backbone.frozen_names)}
    return {**own, **{n: t for n, t in backbone.as_given().items() if n in own}}


def _licence(backbone: InPlaceBackbone) -> str:
    """What binds users of the weights that a model of timm was made for; empty: not known."""
    told = getattr(backbone, 'pretrained_cfg', None)
    return pretraining.licence_note(pretraining.of(told)) if told and backbone.base else ''


def _has(model: nn.Module, prefix: str) -> bool:
    return any(name == prefix.rstrip('.') for name, _ in model.named_modules())


def _as_text(key: str, value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    except TypeError as error:
        raise UserError(f'save_delta: {key} must be plain data ({error})') from error
