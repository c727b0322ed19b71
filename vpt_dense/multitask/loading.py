"""A task of a MultiTask, from a delta of either kind or a tuned model."""

import copy
import os
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from vpt_dense import safe_files
from vpt_dense.backbones.tuned import TunedBackbone
from vpt_dense.errors import UserError
from vpt_dense.multitask.structures import Structure, on_shared, without_weights
from vpt_dense.multitask.weights import Frozen
from vpt_dense.plain import files
from vpt_dense.tuning import is_added
from vpt_dense.weights.base import KEY, Base, frozen_bases


@dataclass(frozen=True)
class About:
    """What a task predicts.

    Attributes:
        kind: ``segmentation``, ``classification`` or another of :mod:`vpt_dense.tasks`.
        classes: The names of the classes; of a file that does not tell them their positions.
        ids: Of each class the number in label maps.
        palette: Of each class its colour, [R, G, B] from 0 to 255; None: there is none.
    """

    kind: str
    classes: tuple[str, ...]
    ids: tuple[int, ...]
    palette: list[list[int]] | None = None


class Task:
    """What a task adds to the shared weights.

    Attributes:
        structure: Lends it a model.
        tensors: Its own tensors, by their names in the model: what was tuned, its head.
        scores: (model, images (B, C, H, W), normalised) -> what the model puts out, each (B, ...).
        predict: (model, images, probabilities) -> results, as ``vpt_dense.load`` gives them; None:
            the model is none that predicts.
        about: What it predicts; None: of a model that does not say so.
        divert: (model, function) -> None: has the model's predictions follow from scores that the
            function gives for normalised images, in place of ``scores``.
    """

    def __init__(
        self, structure: Structure, tensors: Mapping[str, Tensor],
        scores: Callable[[nn.Module, Tensor], Any],
        predict: Callable[[nn.Module, list, Any], list] | None, about: About | None = None,
        divert: Callable[[nn.Module, Callable[[Tensor], Tensor]], None] | None = None,
    ) -> None:
        self.structure, self.scores, self.predict = structure, scores, predict
        self.tensors, self.about = tensors, about
        self.divert = divert or _divert_call

    @property
    def nbytes(self) -> int:
        """Bytes of its own tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def model(self) -> AbstractContextManager[nn.Module]:
        """Its model, for as long as it is needed."""
        return self.structure.lent(self, self.tensors)

    def predicting_by(
        self, scores: Callable[[Tensor], Tensor]
    ) -> Callable[[list, bool | str], list]:
        """What predicts as ``predict`` does, by scores that come from elsewhere.

        It holds a copy of the model in which the shared weights take no memory: how images are
        read, cut, put together and told stays the task's own.

        Args:
            scores: Images (B, C, H, W), normalised, to what ``scores`` gives for them.

        Returns:
            (images, probabilities) -> results.
        """
        with self.model() as model:
            held = dict(model.named_parameters(remove_duplicate=False))
            held |= dict(model.named_buffers(remove_duplicate=False))
            memo: dict[int, Any] = {
                id(tensor): _without_memory(tensor) for name, tensor in held.items()
                if name in self.structure.shared}
            backbone = self.structure.backbone_of(model)
            memo[id(getattr(backbone, 'feature_cache', None))] = None
            own = copy.deepcopy(model, memo)
        self.divert(own, scores)
        return partial(self.predict, own)


class Loader:
    """Puts tasks on shared weights.

    Args:
        frozen: The shared weights.
    """

    def __init__(self, frozen: Frozen) -> None:
        self.frozen = frozen
        #: Of tasks that are in memory.
        self._structures: WeakValueDictionary[tuple, Structure] = WeakValueDictionary()
        #: Those that were needed last stay, so that the next task of them is quick to read.
        self._recent: deque[Structure] = deque(maxlen=8)

    def load(self, source: Any, name: str) -> Task:
        """Load a task.

        Args:
            source: Path of a delta, of a config's run or of plain PyTorch; or a tuned model, whose
                frozen tensors become the shared ones.
            name: Of the task, for messages.

        Raises:
            UserError: If it was tuned on other weights, all of its backbone was, or see
                :func:`vpt_dense.load`.
        """
        if isinstance(source, nn.Module):
            return self._of_model(source, name)
        path = os.fspath(source)
        if safe_files.is_plain_delta(path):
            return self._of_plain(path, name)
        return self._of_config(path, name)

    def _of_model(self, model: nn.Module, name: str) -> Task:
        found = _backbones(model)
        if len(found) != 1:
            raise UserError(
                f'task {name}: a {type(model).__name__} with {len(found)} tuned backbones; one is '
                'needed')
        ((prefix, backbone),) = found
        _check_frozen(backbone.frozen_names, name)
        told = Base('', '', '', 0, 0, backbone.describe())
        self.frozen.adopt(backbone, backbone.frozen_names, told, f'task {name}')
        structure = Structure(model, prefix, self.frozen)
        return Task(structure, _tensors(model, structure), _call, _predict_of(model),
                    _about(getattr(model, 'builder', None), None))

    def _of_plain(self, path: str, name: str) -> Task:
        content = files.read(path)
        if not files.is_built(content):
            raise UserError(
                f'task {name}: {path} is of a model of your own: build it, load the delta '
                '(vpt_dense.load_delta) and give MultiTask the model')
        meta = content['meta']
        ((prefix, record),) = meta['backbones'].items()
        found = self._place(
            ('plain', repr((record['method'], record['origin'], meta.get('builder')))),
            partial(files.build, content, path, pretrained=False), content['state_dict'],
            Base.from_dict(record['base']), prefix, f'{name} ({path})',
            lambda: files.load(path))
        structure, tensors, model = found
        return Task(structure, tensors, _call, _predict_of(model),
                    _about(meta.get('builder'), meta.get('told')))

    def _of_config(self, path: str, name: str) -> Task:
        from vpt_dense import building
        from vpt_dense.checkpoints import deltas
        from vpt_dense.predicting import model as predicting

        placed = []

        def assemble(cfg: Any, content: dict, path: str, base: str | None) -> nn.Module:
            state = content['state_dict']
            keys = [key.removesuffix(KEY) for key in state if key.endswith(KEY)]
            if len(keys) != 1:
                _refuse_bases(path, len(keys))
            record = Base.from_tensor(state.pop(keys[0] + KEY))
            whole = dict(content, state_dict={**state, keys[0] + KEY: record.to_tensor()})
            placed.append(self._place(
                ('config', cfg.get('default_scope'), repr(cfg.model)),
                partial(building.build_model, cfg), state, record, keys[0], f'{name} ({path})',
                lambda: deltas.load(cfg, whole, path, base)))
            return placed[0][2]

        predictor = predicting.load(path, device=str(self.frozen.device), assemble=assemble)
        structure, tensors, model = placed[0]
        around = None if predictor.model is predictor._inner else predictor.model
        if around is not None:
            around.module = None
        predictor.model = predictor._inner = None  # it is lent one

        def predict(model: nn.Module, images: list, probabilities: Any) -> list:
            own = copy.copy(predictor)
            own.model = own._inner = model
            if around is not None:  # test-time augmentation
                own.model = copy.copy(around)
                own.model._modules = {**around._modules, 'module': model}
            return own.predict_by_size(images, probabilities)

        about = About(predictor.task, predictor.classes, predictor.ids, predictor.palette)
        return Task(structure, tensors, partial(_scores, predictor.task), predict, about,
                    partial(_divert, predictor.task))

    def _place(
        self, key: tuple, build: Callable[[], nn.Module], state: Mapping[str, Tensor], base: Base,
        prefix: str, whose: str, load: Callable[[], nn.Module],
    ) -> tuple[Structure, dict[str, Tensor], nn.Module]:
        """Put the model of a file on the shared tensors.

        Args:
            key: Of its config.
            build: Builds it.
            state: What the file holds.
            base: What it says of the frozen tensors that it leaves out.
            prefix: Of the backbone's names.
            whose: The task and its file, for messages.
            load: Loads it as it is loaded alone.

        Returns:
            Its structure, its own tensors, and a model.
        """
        frozen = self.frozen
        key = (*key, tuple(sorted((name, tuple(t.shape)) for name, t in state.items())))
        structure = self._structures.get(key)
        if structure is None:
            with without_weights():
                skeleton = build()
            backbone = skeleton.get_submodule(prefix.rstrip('.')) if prefix else skeleton
            names = _frozen_names(backbone, prefix, state)
            _check_frozen(names, whose)
            if not isinstance(backbone, TunedBackbone):
                _refuse_bases(whose, 1)
            shapes = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
            refused = None
            try:
                fits = frozen.has({name: shapes[name] for name in names})
                if fits:
                    frozen.check(names, base, f'task {whose}')
            except UserError as error:  # if its positions alone are others, they stay its own
                fits, refused = False, error
            if not fits:
                try:
                    model = load()
                    backbone = model.get_submodule(prefix.rstrip('.')) if prefix else model
                    frozen.adopt(backbone, names, base, f'task {whose}')
                except UserError as error:
                    raise refused or error from None
                structure = Structure(model, prefix, frozen)
                return structure, _tensors(model, structure), model
        else:
            names = frozenset(name.removeprefix(prefix) for name in structure.shared)
            frozen.check(names, base, f'task {whose}')
        state = {name: t.to(frozen.device, frozen.dtype if t.is_floating_point() else t.dtype)
                 for name, t in state.items()}  # fmt: skip
        if structure is None:
            shared = {prefix + name: frozen.tensors[name] for name in names}
            try:
                model = on_shared(build, {**shared, **state}, skeleton)
            except ValueError as error:
                raise UserError(f'task {whose} is not of its own model: {error}') from error
            structure = self._structures[key] = Structure(model, prefix, frozen, build)
        if structure not in self._recent:
            self._recent.append(structure)
        return structure, state, structure.any()


def _tensors(model: nn.Module, structure: Structure) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: state[name] for name in structure.names}


def _call(model: nn.Module, images: Tensor) -> Any:
    return model(images)


def _predict_of(model: nn.Module) -> Callable | None:
    if not hasattr(model, 'predict'):
        return None
    if hasattr(model, 'predict_batch'):
        return lambda own, images, _: own.predict_batch(images)
    return lambda own, images, _: [own.predict(image) for image in images]


def _about(builder: Any, told: Any) -> About | None:
    """What a model of plain PyTorch predicts.

    Args:
        builder: How it was built.
        told: What its user wrote into the file: ``dict(classes=['cat', 'dog'])``.
    """
    kinds = dict(classifier='classification', segmentor='segmentation')
    kind = kinds.get(builder['task']) if isinstance(builder, dict) else None
    if kind is None:
        return None
    number = builder['arguments']['num_classes']
    classes = told.get('classes') if isinstance(told, dict) else None
    if not isinstance(classes, list) or len(classes) != number:
        classes = range(number)
    return About(kind, tuple(map(str, classes)), tuple(range(number)))


def _check_frozen(names: Collection[str], whose: str) -> None:
    if not names:
        raise UserError(
            f'task {whose}: all of its backbone was tuned, nothing of it can be shared; serve it '
            'with vpt_dense.load')


def _refuse_bases(path: str, number: int) -> NoReturn:
    if not number:
        raise UserError(
            f'{path} names no frozen weights: all of the backbone was tuned, or it is no delta; '
            'MultiTask is for deltas of a frozen backbone (vpt-dense delta extract)')
    raise UserError(f'{path} has frozen towers beside the backbone, which MultiTask does not know; '
                    'serve it with vpt_dense.load')


def _frozen_names(
    backbone: nn.Module, prefix: str, state: Mapping[str, Tensor]
) -> frozenset[str]:
    """Names of a backbone's tensors that a file leaves out."""
    return frozenset(
        name for name in backbone.state_dict() if prefix + name not in state and not is_added(name))


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
    keys = [key.removesuffix(KEY) for key in content['state_dict'] if key.endswith(KEY)]
    if len(keys) != 1:
        _refuse_bases(path, len(keys))
    backbone = model.get_submodule(keys[0].rstrip('.'))
    record = Base.from_tensor(content['state_dict'][keys[0] + KEY])
    backbone.load_base(base or backbone._find_base(record), record.keys)
    return Frozen.of(backbone, backbone.describe(), device)


def _backbones(model: nn.Module) -> list[tuple[str, TunedBackbone]]:
    return [(prefix, m) for prefix, m in frozen_bases(model) if isinstance(m, TunedBackbone)]


def _scores(task: str, model: nn.Module, images: Tensor) -> Tensor:
    """Logits of normalised images, of a model of a config."""
    if task == 'classification':
        return model(images, mode='tensor')
    if task == 'segmentation':
        size = tuple(images.shape[-2:])
        meta = dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)
        number = images.shape[0]
        if isinstance(number, int):
            return model.inference(images, [dict(meta) for _ in range(number)])
        return model.encode_decode(images, [meta])  # of a graph: images are its windows
    raise UserError(f'MultiTask: for the task {task} there are results, no scores; take predict')


def _divert(task: str, model: nn.Module, scores: Callable[[Tensor], Tensor]) -> None:
    """See :attr:`Task.divert`, of a model of a config: what :func:`_scores` calls is replaced."""
    if task == 'classification':
        model.extract_feat = lambda images, *_, **__: scores(images)
        model.head.forward = lambda found: found
    else:
        model.encode_decode = lambda images, _: scores(images)


def _divert_call(model: nn.Module, scores: Callable[[Tensor], Tensor]) -> None:
    model.forward = scores


def _without_memory(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, type and place, all zeros, that takes no memory."""
    found = torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    return nn.Parameter(found, False) if isinstance(tensor, nn.Parameter) else found


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
