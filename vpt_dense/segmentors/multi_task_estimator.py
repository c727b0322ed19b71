"""Several tasks that train together: heads on one backbone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseTTAModel
from mmengine.structures import PixelData
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from vpt_dense import parts
from vpt_dense.heads.eomt import EoMTHead
from vpt_dense.heads.maps import MapHead
from vpt_dense.registry import MODELS
from vpt_dense.segmentors.encoder_decoder import EncoderDecoder
from vpt_dense.segmentors.map_estimator import mirror_normals
from vpt_dense.segmentors.task_weights import TaskWeights

#: The key of a head's truth -> what it finds.
KINDS = {'gt_depth_map': 'depth', 'gt_normal_map': 'normals', 'gt_edge_map': 'edges',
         'gt_distance_map': 'distance'}


def kind_of(head: nn.Module) -> str:
    """What a head finds: ``segmentation``, one of :data:`KINDS`, or '' of a map of another."""
    return KINDS.get(head.truth, '') if isinstance(head, MapHead) else 'segmentation'


@MODELS.register_module()
class MultiTaskEstimator(EncoderDecoder):
    """Heads of several tasks on one backbone, which train together.

    A head is one of mmseg's (classes: segmentation, saliency, human parts) or of this package's
    maps (depth, normals, edges, distances). Of a task NAME the data samples hold the truth as
    ``gt_NAME_map`` and get ``pred_NAME_map``, (channels, height, width): labels, probabilities of
    edges, numbers. Labels that are not known are the head's ``ignore_index``; see ``void`` of
    heads of maps.

    Prompts and adapters that differ by task (:class:`vpt_dense.prompts.TaskPrompts`,
    :class:`vpt_dense.adapters.MTLoRA`) get the tasks' names from here. Blocks in front of the
    first one that differs run once for all tasks, and all of them if none does.

    Args:
        backbone: Config of the backbone.
        task_heads: Name -> config of a head.
        weighting: Arguments of :class:`vpt_dense.segmentors.task_weights.TaskWeights`: ``kind``,
            ``weights``, ``alpha``; None: the sum of the losses.
        **kwargs: As in :class:`vpt_dense.segmentors.encoder_decoder.EncoderDecoder`, without
            heads.

    Attributes:
        task_heads: The heads by name.
        active: The task whose head ``decode_head`` is.

    Raises:
        ValueError: If the tasks or their heads cannot be served; the message names the key.
    """

    def __init__(
        self, *, backbone: dict, task_heads: Mapping[str, dict], weighting: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(task_heads, Mapping) or not task_heads or 'type' in task_heads:
            raise ValueError(
                'model.task_heads must be a dict of heads by the names of tasks, '
                f'found {task_heads!r}')
        for name in task_heads:
            if not str(name).isidentifier():
                raise ValueError(f'model.task_heads: {name!r} is no name of a task; take letters, '
                                 'digits and _')
        for key in ('decode_head', 'auxiliary_head'):
            if kwargs.get(key):
                raise ValueError(f'model.{key}: a MultiTaskEstimator has task_heads alone')
        self.__dict__.update(active=next(iter(task_heads)), _shared=None)
        super().__init__(
            backbone=_with_tasks(backbone, list(task_heads)), decode_head=task_heads, **kwargs)
        self.weighting = TaskWeights(
            list(task_heads), [name for name, head in self.task_heads.items()
                               if not isinstance(head, MapHead) or head.classifies],
            **(weighting or {}))  # fmt: skip

    def _init_decode_head(self, decode_head: Mapping[str, dict]) -> None:
        """Build the heads where they are looked for: among the children under their key."""
        self.task_heads = nn.ModuleDict(
            {name: MMSEG_MODELS.build(config) for name, config in decode_head.items()})
        for name, head in self.task_heads.items():
            if isinstance(head, EoMTHead) or not hasattr(head, 'loss_decode'):
                raise ValueError(f'model.task_heads.{name}: {type(head).__name__} changes what '
                                 'the backbone computes; take a head that reads maps')
        corners = {head.align_corners for head in self.task_heads.values()}
        if len(corners) > 1:
            raise ValueError('model.task_heads: align_corners must be the same for all heads')
        self.align_corners = corners.pop()
        self.num_classes = self.out_channels = None

    @property
    def decode_head(self) -> nn.Module:
        """The head of the task that is at work, as mmseg calls it."""
        return self.task_heads[self.active]

    def own_parts(self) -> list[nn.Module]:
        """Prompts and adapters that differ by task."""
        found = [getattr(self.backbone, 'prompt', None), *getattr(self.backbone, 'adapters', ())]
        return [each for each in found if getattr(each, 'per_task', False)]

    @contextmanager
    def of_tasks(self, inputs: Tensor) -> Iterator[Iterator[str]]:
        """Go through the tasks; what they share of a batch (B, C, H, W) is computed once."""
        before = self.active
        self._shared = _Shared(
            inputs, min((part.task_layer for part in self.own_parts()), default=None))

        def names() -> Iterator[str]:
            for name in self.task_heads:
                self.active = name
                yield name

        try:
            yield names()
        finally:
            self.active, self._shared = before, None

    def extract_feat(self, inputs: Tensor) -> tuple:
        """Maps (B, C, h, w) of the backbone's blocks for the task that is at work."""
        own, shared = self.own_parts(), self._shared
        for part in own:
            part.active = self.active
        if shared is None or shared.inputs is not inputs:
            return super().extract_feat(inputs)
        if not own:
            if shared.outputs is None:
                shared.outputs = super().extract_feat(inputs)
            return shared.outputs
        with shared.attached(self.backbone):
            return super().extract_feat(inputs)

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """The losses of all tasks, weighted: ``TASK.NAME``.

        Args:
            inputs: (B, C, H, W).
            data_samples: With ``gt_NAME_map`` of each task.
        """
        losses = {}
        with self.of_tasks(inputs) as names:
            for name in names:
                truths = [self._with_truth(each, name, inputs.shape[2:]) for each in data_samples]
                losses[name] = self.decode_head.loss(
                    self.extract_feat(inputs), truths, self.train_cfg)
        return self.weighting(losses, list(self.backbone.parameters()))

    def predict(
        self, inputs: Tensor, data_samples: list | None = None, finished: bool = True
    ) -> list:
        """Predict the maps of all tasks.

        Args:
            inputs: (B, C, H, W).
            data_samples: Of the images; without them nothing is resized.
            finished: Whether classes are wanted as labels; else as probabilities, which can be
                averaged.

        Returns:
            Data samples with ``pred_NAME_map`` (channels, height, width), each with what it is of:
            ``kind`` (see :func:`kind_of`), ``number`` of classes or None, ``farthest`` that can be
            found or None.
        """
        whole = data_samples is None
        samples = [SegDataSample() for _ in inputs] if whole else data_samples
        size = tuple(inputs.shape[2:])
        metas = [dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0, 0, 0, 0])
                 if whole else each.metainfo for each in samples]
        with self.of_tasks(inputs) as names:
            for name in names:
                for logits, sample, meta in zip(
                        self.inference(inputs, metas), samples, metas, strict=True):
                    found = logits if whole else self.restore(logits, meta)
                    self._put(sample, name, self._answer(found, meta, finished))
        return samples

    def _put(self, sample: SegDataSample, name: str, data: Tensor) -> None:
        """Put what was found for a task into a data sample."""
        head = self.task_heads[name]
        farthest = getattr(head, 'max_depth', getattr(head, 'max_distance', None))
        sample.set_data({f'pred_{name}_map': PixelData(data=data, metainfo=dict(
            kind=kind_of(head), number=head.num_classes, farthest=farthest))})

    def conclude(self, sample: SegDataSample, name: str, mean: Tensor) -> None:
        """Put the mean of what ``predict(..., finished=False)`` gave into a data sample.

        Args:
            sample: Gets ``pred_NAME_map``.
            name: Of the task.
            mean: (channels, height, width).
        """
        before, self.active = self.active, name
        try:
            head = self.decode_head
            data = head.finish(mean) if isinstance(head, MapHead) else self.classify(mean)
        finally:
            self.active = before
        self._put(sample, name, data)

    def _forward(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Tensor]:
        """What the heads give, by task."""
        with self.of_tasks(inputs) as names:
            return {name: self.decode_head(self.extract_feat(inputs)) for name in names}

    def _answer(self, found: Tensor, meta: dict, finished: bool) -> Tensor:
        head = self.decode_head
        if not isinstance(head, MapHead):
            if len(found) == 1:
                found = found.sigmoid()
            elif not finished:
                found = found.softmax(dim=0)
            return self.classify(found) if finished else found
        if head.truth == 'gt_normal_map':
            found = mirror_normals(found, meta)
        return head.answer(head.finish(found))

    def _with_truth(self, sample: SegDataSample, name: str, size: torch.Size) -> SegDataSample:
        """The truth of a task as its head looks for it, up to the borders of the batch."""
        head, key = self.task_heads[name], f'gt_{name}_map'
        if key not in sample:
            there = [each for each in sample.keys() if each.startswith('gt_')]
            raise ValueError(
                f'{sample.get("img_path")}: model.task_heads has a task {name}, but the data no '
                f'{key} (found: {", ".join(there) or "none"}); name the task as the data do, and '
                'let the pipeline end with vpt_dense.PackTasks')
        is_map = isinstance(head, MapHead)
        truth = sample.get(key).data
        bottom, right = (n - m for n, m in zip(size, truth.shape[1:], strict=True))
        if bottom or right:
            truth = F.pad(truth, (0, right, 0, bottom),
                          value=head.void if is_map else head.ignore_index)
        view = SegDataSample(metainfo=sample.metainfo)
        view.set_data({head.truth if is_map else 'gt_sem_seg': PixelData(data=truth)})
        return view


@MODELS.register_module()
class MultiTaskTTAModel(BaseTTAModel):
    """Test-time augmentation of several tasks: the mean over all versions of an image.

    Of classes and edges probabilities are averaged, of other maps the numbers; normals are made
    vectors of length 1 again.

    Args:
        module: A :class:`MultiTaskEstimator`.
        **kwargs: As in :class:`mmengine.model.BaseTTAModel`.

    Raises:
        ValueError: If the module is another one.
    """

    def __init__(self, module: dict | nn.Module, **kwargs: Any) -> None:
        super().__init__(module=module, **kwargs)
        if not isinstance(self.module, MultiTaskEstimator):
            raise ValueError(
                "tta_model.type='vpt_dense.MultiTaskTTAModel' needs a model of type "
                f"'vpt_dense.MultiTaskEstimator', found {type(self.module).__name__}")

    def test_step(self, data: dict[str, list[list[Any]]]) -> list:
        """Predict images from all their versions.

        Args:
            data: ``inputs``, images (C, H, W), and ``data_samples``, for each augmentation a list
                of the images of the batch.

        Returns:
            As :meth:`MultiTaskEstimator.predict`.
        """
        versions = []
        for i in range(len(data['inputs'])):
            batch = self.module.data_preprocessor(
                {key: values[i] for key, values in data.items()}, False)
            versions.append(self.module.predict(**batch, finished=False))
        return self.merge_preds(list(zip(*versions, strict=True)))

    def merge_preds(self, data_samples_list: list) -> list:
        """Merge the versions of each image, not finished, into the sample of the first.

        Raises:
            ValueError: If versions of different sizes have distances, which are in their pixels.
        """
        for versions in data_samples_list:
            for name, head in self.module.task_heads.items():
                sizes = {tuple(each.img_shape[:2]) for each in versions}
                if kind_of(head) == 'distance' and len(sizes) > 1:
                    raise ValueError(
                        f'tta_pipeline: the task {name} finds distances in pixels of the image as '
                        f'the model takes it, and versions have {len(sizes)} sizes; leave out '
                        'what resizes them')
                maps = [each.get(f'pred_{name}_map').data for each in versions]
                total = sum(each.to(torch.promote_types(each.dtype, torch.float32))
                            for each in maps)
                self.module.conclude(versions[0], name, total / len(maps))
        return [versions[0] for versions in data_samples_list]


class _Shared:
    """What tasks share of a batch: the outputs, or the tokens in front of the first own block.

    Stands where a backbone looks for kept features, see
    :class:`vpt_dense.backbones.feature_cache.FeatureCache`, and hands on to one that is there.
    """

    def __init__(self, inputs: Tensor, depth: int | None) -> None:
        self.inputs, self.depth = inputs, depth
        self.outputs: tuple | None = None
        self._tokens: dict[int, Tensor] = {}
        self._beneath: Any = None

    @contextmanager
    def attached(self, backbone: nn.Module) -> Iterator[None]:
        """A backbone looks here, inside."""
        before = vars(backbone).get('feature_cache')
        self._cache = before
        backbone.__dict__['feature_cache'] = self
        try:
            yield
        finally:
            del backbone.__dict__['feature_cache']
            if before is not None:
                backbone.__dict__['feature_cache'] = before

    def open(self, images: Tensor) -> '_Shared':
        """Begin a pass of the blocks."""
        self._beneath = None if self._cache is None else self._cache.open(images)
        return self

    def through(self, i: int, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """Let tokens pass block i, or take what it made of them for another task."""
        if i in self._tokens:
            return self._tokens[i]
        out = run() if self._beneath is None else self._beneath.through(i, x, run)
        if i < self.depth:
            self._tokens[i] = out
        return out


def _with_tasks(backbone: dict, names: list[str]) -> dict:
    """The config of a backbone, whose parts that differ by task know the tasks."""

    def told(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        kind = parts.find(part.get('type'))
        return {**part, 'tasks': names} if getattr(kind, 'per_task', False) else part

    backbone = {**backbone}
    if backbone.get('prompt'):
        backbone['prompt'] = told(backbone['prompt'])
    if isinstance(backbone.get('adapters'), (list, tuple)):
        backbone['adapters'] = [told(each) for each in backbone['adapters']]
    return backbone
