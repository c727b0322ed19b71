"""A task of a MultiTask, from a delta of either kind or a tuned model."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vpt_dense import safe_files
from vpt_dense.backbones.token_tuning import TokenTuning
from vpt_dense.backbones.tuned import TunedBackbone
from vpt_dense.errors import UserError
from vpt_dense.multitask import weights
from vpt_dense.multitask.prefix import Prefix, first_block
from vpt_dense.multitask.weights import Frozen
from vpt_dense.plain import files
from vpt_dense.tuning import is_added, method_of
from vpt_dense.weights.base import KEY, Base, FrozenBase, frozen_bases


@dataclass
class Task:
    """A model whose frozen tensors are the shared ones.

    Attributes:
        model: The whole model, in eval mode.
        prefix: Of its backbone's names.
        backbone: Its backbone.
        own: Names of the backbone's tensors that are its own, without what tuning added.
        depth: How many blocks it does not change; 0: not known, or no blocks.
        scores: (images (B, C, H, W), normalised) -> its outputs, each (B, ...).
        predict: (images, probabilities) -> results, as ``vpt_dense.load`` gives them.
        method: What was tuned, plain data.
        source: The file; empty: it was a model.
    """

    model: nn.Module
    prefix: str
    backbone: TunedBackbone
    own: frozenset[str]
    depth: int
    scores: Callable[[Tensor], Any]
    predict: Callable[[list, Any], list] | None
    method: Mapping[str, Any]
    source: str = ''

    def tensors(self) -> list[Tensor]:
        """All of its own tensors: what was tuned, its head, buffers."""
        shared = {id(t) for name, t in self.backbone.state_dict(keep_vars=True).items()
                  if not is_added(name) and name not in self.own}
        return [t for t in (*self.model.parameters(), *self.model.buffers()) if id(t) not in shared]

    @property
    def nbytes(self) -> int:
        """Bytes of these."""
        return sum(tensor.nbytes for tensor in self.tensors())


def read(source: Any, name: str, frozen: Frozen) -> Task:
    """Put a task on shared weights.

    Args:
        source: Path of a delta, of a config's run or of plain PyTorch; or a tuned model, whose
            frozen tensors become the shared ones.
        name: Of the task, for messages.
        frozen: The shared weights.

    Raises:
        UserError: If it was tuned on other weights, all of its backbone was, or see
            :func:`vpt_dense.load`.
    """
    if isinstance(source, nn.Module):
        return _of_model(source, name, frozen)
    path = os.fspath(source)
    if safe_files.is_plain_delta(path):
        return _of_plain(path, name, frozen)
    return _of_config(path, name, frozen)


def frozen_of(source: Any, base: str | None, device: Any) -> Frozen:
    """The frozen backbone of a first delta, or of a model.

    Args:
        source: Path of a delta, or a model: of timm, transformers or torchvision, tuned or not, or
            one that has a tuned backbone.
        base: The pretrained weights of a delta, if they are not where it says.
        device: Where they go.

    Raises:
        UserError: If they cannot be had.
    """
    if isinstance(source, nn.Module):
        found = dict(_backbones(source))
        if len(found) > 1:
            raise UserError(f'MultiTask: the model has several tuned backbones: {list(found)}')
        backbone = next(iter(found.values()), source)
        told = backbone.describe() if found else type(source).__name__
        return Frozen.of(backbone, told, device)
    path = os.fspath(source)
    if safe_files.is_plain_delta(path):
        content = files.read(path)
        (record, *_) = content['meta']['backbones'].values()
        place = base or record['base']['checkpoint']
        if not place:
            raise UserError(
                f'{path} does not say where its frozen weights come from; give MultiTask the '
                'backbone itself, or base=PATH')
        model = files.build(content, path, pretrained=True, checkpoint=place)
        ((_, backbone),) = _backbones(model)
        return Frozen.of(backbone, backbone.describe(), device)
    from vpt_dense import building
    from vpt_dense.checkpoints import deltas
    from vpt_dense.weights import stored_config

    content = deltas.read(path)
    cfg = stored_config.parse(content['meta'].get('cfg'), path, everything=True)
    model = building.build_model(cfg)
    (prefix, backbone), record = _record(model, content['state_dict'], path)
    backbone.load_base(base or backbone._find_base(record), record.keys)
    return Frozen.of(backbone, backbone.describe(), device)


def _backbones(model: nn.Module) -> list[tuple[str, TunedBackbone]]:
    return [(prefix, m) for prefix, m in frozen_bases(model) if isinstance(m, TunedBackbone)]


def _record(
    model: nn.Module, state: Mapping[str, Tensor], path: str
) -> tuple[tuple[str, FrozenBase], Base]:
    """The one backbone of a model of a config, with its prefix, and what a file says of it."""
    found = [(prefix, m) for prefix, m in frozen_bases(model) if prefix + KEY in state]
    if not found:
        raise UserError(
            f'{path} names no frozen weights: the whole backbone was tuned, or it is no delta; '
            'MultiTask is for deltas of a frozen backbone (vpt-dense delta extract)')
    if len(found) > 1 or not isinstance(found[0][1], TunedBackbone):
        raise UserError(f'{path} has frozen towers beside the backbone, which MultiTask does not '
                        'know; serve it with vpt_dense.load')  # fmt: skip
    return found[0], Base.from_tensor(state[found[0][0] + KEY])


def _of_model(model: nn.Module, name: str, frozen: Frozen) -> Task:
    found = _backbones(model)
    if len(found) != 1:
        raise UserError(
            f'task {name}: a {type(model).__name__} with {len(found)} tuned backbones; one is '
            'needed')
    ((prefix, backbone),) = found
    names = backbone.frozen_names
    told = Base('', '', '', len(names), 0, backbone.describe())
    _check_frozen(backbone, names, name)
    frozen.adopt(backbone, names, told, f'task {name}')
    return _task(model.eval(), prefix, frozen, model, None, '')


def _of_plain(path: str, name: str, frozen: Frozen) -> Task:
    content = files.read(path)
    state = content['state_dict']
    if not files.is_built(content):
        raise UserError(
            f'task {name}: {path} is of a model of your own: build it, load the delta '
            '(vpt_dense.load_delta) and give MultiTask the model')
    ((prefix, record),) = content['meta']['backbones'].items()
    base = Base.from_dict(record['base'])

    def build() -> nn.Module:
        return files.build(content, path, pretrained=False)

    with weights.without_weights():
        model = build()
    ((_, backbone),) = _backbones(model)
    model = _put(build, model, backbone, prefix, state, base, name, path, frozen)
    if model is None:
        model = files.load(path)
        ((_, backbone),) = _backbones(model)
        frozen.adopt(backbone, _frozen_names(backbone, prefix, state), base, f'{name} ({path})')
    predict = getattr(model, 'predict', None)
    return _task(
        model, prefix, frozen, model,
        None if predict is None else lambda images, _: [predict(image) for image in images], path)


def _frozen_names(
    backbone: nn.Module, prefix: str, state: Mapping[str, Tensor]
) -> frozenset[str]:
    """Names of a backbone's tensors that a file leaves out."""
    return frozenset(
        name for name in backbone.state_dict() if prefix + name not in state and not is_added(name))


def _put(
    build: Callable[[], nn.Module], skeleton: nn.Module, backbone: FrozenBase, prefix: str,
    state: Mapping[str, Tensor], base: Base, name: str, path: str, frozen: Frozen,
) -> nn.Module | None:
    """The model of a file on the shared tensors; None: some that it needs are not among them."""
    names = _frozen_names(backbone, prefix, state)
    _check_frozen(backbone, names, f'{name} ({path})')
    own = backbone.state_dict()
    if not frozen.has({each: own[each].shape for each in names}):
        return None
    frozen.check(names, base, f'task {name} ({path})')
    whole = {**{prefix + each: frozen.tensors[each] for each in names}, **state}
    whole.pop(prefix + KEY, None)
    try:
        return weights.build(build, whole, skeleton)
    except ValueError as error:
        raise UserError(f'task {name}: {path} is not of its own model: {error}') from error


def _of_config(path: str, name: str, frozen: Frozen) -> Task:
    from vpt_dense import building
    from vpt_dense.checkpoints import deltas
    from vpt_dense.predicting import model as predicting

    def assemble(cfg: Any, content: dict, path: str, base: str | None) -> nn.Module:
        build = partial(building.build_model, cfg)
        state = content['state_dict']
        with weights.without_weights():
            skeleton = build()
        (prefix, backbone), record = _record(skeleton, state, path)
        model = _put(build, skeleton, backbone, prefix, state, record, name, path, frozen)
        if model is not None:
            return model
        names = _frozen_names(backbone, prefix, state)
        model = deltas.load(cfg, content, path, base)
        backbone = model.get_submodule(prefix.rstrip('.'))
        frozen.adopt(backbone, names - {KEY}, record, f'{name} ({path})')
        return model

    predictor = predicting.load(path, device=str(frozen.device), assemble=assemble)
    model = predictor._inner
    ((prefix, _),) = _backbones(model)

    def predict(images: list, probabilities: Any) -> list:
        return predictor.predict(images, probabilities)

    return _task(model, prefix, frozen, partial(_scores, model, predictor.task), predict, path)


def _check_frozen(backbone: nn.Module, names: frozenset[str], whose: str) -> None:
    if not names:
        raise UserError(
            f'task {whose}: all of its backbone was tuned, nothing of it can be shared; serve it '
            'with vpt_dense.load')


def _task(
    model: nn.Module, prefix: str, frozen: Frozen, scores: Callable, predict: Callable | None,
    source: str,
) -> Task:
    backbone = model.get_submodule(prefix.rstrip('.')) if prefix else model
    state = backbone.state_dict(keep_vars=True)
    own = frozenset(
        name for name, tensor in state.items() if not is_added(name) and not (
            name in frozen.tensors and frozen.is_shared(tensor)))
    for tensor in (*model.parameters(), *model.buffers()):
        if not frozen.is_shared(tensor):
            kind = frozen.dtype if tensor.is_floating_point() else tensor.dtype
            tensor.data = tensor.data.to(frozen.device, kind)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    depth = 0
    if isinstance(backbone, TokenTuning):
        depth = first_block(backbone, own)
        backbone.feature_cache = Prefix(backbone, depth)
    method = getattr(backbone, 'settings', None) or method_of({}, backbone)
    return Task(model, prefix, backbone, own, depth, scores, predict, method, source)


def _scores(model: nn.Module, task: str, images: Tensor) -> Tensor:
    """Logits of normalised images, of a model of a config."""
    if task == 'classification':
        return model(images, mode='tensor')
    if task == 'segmentation':
        size = tuple(images.shape[-2:])
        meta = dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)
        return model.inference(images, [dict(meta) for _ in images])
    raise UserError(f'MultiTask: for the task {task} there are results, no scores; take predict')


def split(outputs: Any, number: int) -> list[Any]:
    """What a model puts out for a batch, image by image."""
    if isinstance(outputs, Tensor):
        return list(outputs.unbind(0))
    if isinstance(outputs, Sequence):
        return list(zip(*(split(each, number) for each in outputs), strict=True))
    raise UserError(
        f'MultiTask: a model that puts out a {type(outputs).__name__} cannot be taken apart image '
        'by image')


def as_batch(images: Sequence[Tensor]) -> Tensor:
    """Images (C, H, W) of one size as a batch; of one image its view."""
    return images[0][None] if len(images) == 1 else torch.stack(list(images))
