"""Estimates the memory of a training step without running one.

Two steps of the config's own model, loss and optimizer run on fake tensors: PyTorch's own, which
have shapes, types and storages, and no numbers. Every operation is the one that a run calls on this
machine, so what autograd keeps is what it keeps there; it takes a second at any size.
"""

import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vpt_dense import building, recomputing, tasks
from vpt_dense.argument_checks import to_pair
from vpt_dense.engine import layer_decay
from vpt_dense.errors import UserError
from vpt_dense.tree import kind_of, leaf_datasets

#: Transforms after which every image has one size: the argument that tells it, and whether that
#: is (width, height), as OpenCV has it.
_SIZED_BY = {
    'RandomCrop': ('crop_size', False),
    'RandomResizedCrop': ('scale', False),
    'CenterCrop': ('crop_size', True),
    'Resize': ('scale', True),
    'Pad': ('size', True),
}


def estimate(cfg: Config) -> dict[str, Any]:
    """Estimate what a training step of a config takes on one device of this machine.

    The batch is ``train_dataloader.batch_size`` images, all of the size that the training pipeline
    gives them, every pixel of them labelled. Not in the figures: gaps of the allocator, memory
    inside of kernels, buckets of distributed training, the copies of a weight average
    (``EMAHook``), Python and its libraries.

    Args:
        cfg: A whole config, as :func:`vpt_dense.config.load` returns it. Neither its data nor its
            weights need to be there.

    Returns:
        Plain data: ``batch_size``; ``image`` ([channels, height, width], as the model gets it);
        ``size_from`` (what told height and width: the transform of the training pipeline that
        fixes them, or else the key of the config); ``device`` ('cpu' or 'cuda'); and
        ``megabytes`` (10^6 bytes):

        - ``weights``: parameters and buffers.
        - ``gradients``: of what trains.
        - ``optimizer``: its state.
        - ``kept``: what the forward pass keeps for backward, weights left out.
        - ``sum`` of these four.
        - ``peak``: the most that lives at one moment of a step, with the batch and all tensors
          that come and go. Less than the sum where gradients replace what was kept.

    Raises:
        UserError: If the config lacks what a training step needs, or is one of detection.
    """
    task = tasks.of(cfg.get('model') or {})
    if task is not None and task.regions:
        raise UserError(
            f'the memory of a training step of {task.name} depends on what is found in the images; '
            'vpt-dense compare measures it')
    loader = cfg.get('train_dataloader') or {}
    if not loader.get('batch_size') or not cfg.get('optim_wrapper'):
        missing = 'optim_wrapper' if loader.get('batch_size') else 'train_dataloader.batch_size'
        raise UserError(f'there is no {missing}, so no training step whose memory to estimate')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    with building.scope(cfg):
        MODELS.get(cfg.model.type)  # imports its package: the tensors of modules are not to be fake
        with FakeTensorMode(allow_non_fake_inputs=True), _Storages() as storages:
            # There at once: `.to()` does not work on fake parameters.
            model = building.build_model(cfg, device).train()
            recomputing.turn_on(model, cfg.get(recomputing.KEY) or ())
            model.data_preprocessor.to(device)  # it moves the batch there
            optim_wrapper = build_optim_wrapper(
                model, layer_decay.known(cfg.optim_wrapper, model))
            size, size_from = image_size(cfg, model)
            for _ in range(2):  # before the second step the optimizer has its state
                storages.peak = storages.now
                found = _step(model, optim_wrapper, synthetic_batch(cfg, loader.batch_size, size))
            state = tree_leaves(list(optim_wrapper.optimizer.state.values()))
            sizes = {
                'weights': _bytes(_held_by(model)),
                'gradients': found['gradients'],
                'optimizer': _bytes(state),
                'kept': found['kept'],
            }
    sizes.update(sum=sum(sizes.values()), peak=storages.peak)
    return {
        'batch_size': loader.batch_size,
        'image': found['image'],
        'size_from': size_from,
        'device': device,
        'megabytes': {name: size / 1e6 for name, size in sizes.items()},
    }


def _step(model: nn.Module, optim_wrapper: OptimWrapper, batch: dict) -> dict[str, Any]:
    """Train one step; return the bytes of ``gradients`` and ``kept``, and the shape of an image."""
    weights = {id(tensor.untyped_storage()) for tensor in _held_by(model)}
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    # The lines of mmengine's train_step and update_params, that one may look in between. The
    # optimizer steps without its wrapper: clipping and loss scaling would ask for numbers.
    with optim_wrapper.optim_context(model):
        data = model.data_preprocessor(batch, True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = model(**data, mode='loss')
    kept = {id(storage): storage.nbytes() for ref in saved if (storage := ref()) is not None}
    loss, _ = model.parse_losses(losses)
    optim_wrapper.backward(optim_wrapper.scale_loss(loss))
    gradients = _bytes(parameter.grad for parameter in model.parameters())
    optim_wrapper.optimizer.step()
    if optim_wrapper.should_update():  # else gradients are being accumulated
        optim_wrapper.zero_grad()
    return {
        'gradients': gradients,
        'kept': sum(size for key, size in kept.items() if key not in weights),
        'image': list(data['inputs'].shape[1:]),
    }


def _held_by(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _bytes(tensors: Iterable[object]) -> int:
    """The bytes of all storages of some tensors; what is no tensor takes none."""
    storages = [t.untyped_storage() for t in tensors if isinstance(t, Tensor)]
    return sum({id(storage): storage.nbytes() for storage in storages}.values())


# --- the batch -------------------------------------------------------------------------------


def synthetic_batch(cfg: Config, count: int, size: tuple[int, int]) -> dict:
    """A batch as a dataloader yields it: byte images of one size, all labelled."""
    sample = tasks.need(cfg.model, 'a training step').function('sample', 'a training step')
    height, width = size
    channels = cfg.model.get('backbone', {}).get('in_channels', 3)
    images = [torch.zeros(channels, height, width, dtype=torch.uint8) for _ in range(count)]
    return dict(inputs=images, data_samples=[sample(cfg, size) for _ in images])


def mask_sample(cfg: Config, size: tuple[int, int]) -> BaseDataElement:
    """An image of segmentation, every pixel of class 0."""
    stride = math.prod(
        step['stride'] for step in _pipeline(cfg) if kind_of(step) == 'StrideLabels')
    rows, columns = (-(-length // stride) for length in size)
    return BaseDataElement(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size),
        gt_sem_seg=PixelData(data=torch.zeros(1, rows, columns, dtype=torch.int64)))


def depth_sample(cfg: Config, size: tuple[int, int]) -> BaseDataElement:
    """An image whose every pixel is a metre away."""
    return BaseDataElement(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size),
        gt_depth_map=PixelData(data=torch.ones(1, *size)))


def normal_sample(cfg: Config, size: tuple[int, int]) -> BaseDataElement:
    """An image of a wall that faces the camera."""
    normals = torch.zeros(3, *size)
    normals[2] = 1
    return BaseDataElement(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size),
        gt_normal_map=PixelData(data=normals))


def tasks_sample(cfg: Config, size: tuple[int, int]) -> BaseDataElement:
    """An image of several tasks: every pixel of class 0, a metre away, no edge."""
    sample = BaseDataElement(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size))
    for name, head in cfg.model.task_heads.items():
        kind = kind_of(head)
        if 'NormalHead' in kind:
            truth = normal_sample(cfg, size).gt_normal_map.data
        elif kind.endswith(('DepthHead', 'DistanceHead')):
            truth = torch.ones(1, *size)
        else:
            truth = torch.zeros(1, *size, dtype=torch.int64)
        sample.set_data({f'gt_{name}_map': PixelData(data=truth)})
    return sample


def class_sample(cfg: Config, size: tuple[int, int]) -> BaseDataElement:
    """An image of classification, of class 0."""
    # Here, since this package can be used without mmpretrain's.
    from mmpretrain.structures import DataSample

    return DataSample().set_gt_label(torch.zeros(1, dtype=torch.int64))


def box_sample(cfg: Config, size: tuple[int, int]) -> BaseDataElement:
    """An image of detection: 8 things of class 0, a quarter of the image wide and high."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    height, width = size
    corners = [(x * width // 4, y * height // 2) for y in range(2) for x in range(4)]
    boxes = torch.tensor([[x, y, x + width // 4, y + height // 4] for x, y in corners],
                         dtype=torch.float32)
    found = InstanceData(bboxes=boxes, labels=torch.zeros(8, dtype=torch.int64))
    if any(step.get('with_mask') for step in _pipeline(cfg)):
        masks = np.zeros((8, height, width), np.uint8)
        for mask, (x, y) in zip(masks, corners, strict=True):
            mask[y : y + height // 4, x : x + width // 4] = 1
        found.masks = BitmapMasks(masks, height, width)
    return DetDataSample(
        gt_instances=found, ignored_instances=InstanceData(bboxes=boxes[:0]),
        metainfo=dict(img_id=0, img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))


def segment_sample(cfg: Config, size: tuple[int, int]) -> BaseDataElement:
    """An image of panoptic segmentation: 8 things of class 0 on stuff of the last class."""
    from mmdet.structures.mask import BitmapMasks

    height, width = size
    sample, head = box_sample(cfg, size), cfg.model.panoptic_head
    masks = np.zeros((8, height, width), np.uint8)
    labels = np.full((1, height, width), head.num_things_classes + head.num_stuff_classes - 1,
                     np.uint8)
    for mask, box in zip(masks, sample.gt_instances.bboxes.int().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = 1
        labels[0][mask > 0] = 0
    sample.gt_instances.masks = BitmapMasks(masks, height, width)
    sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(labels))
    return sample


def image_size(cfg: Config, model: nn.Module) -> tuple[tuple[int, int], str]:
    """The (height, width) of training images in pixels, and what in the config told it."""
    for transform in reversed(_pipeline(cfg)):
        name = kind_of(transform)
        key, width_first = _SIZED_BY.get(name, ('', False))
        size = transform.get(key)
        if size and not transform.get('keep_ratio'):
            pair = to_pair(f'{name}.{key}', size)
            return pair[::-1] if width_first else pair, name
        if 'Resize' in name or 'Crop' in name:
            break  # an image's size after it depends on the image
    padded_to = (cfg.model.get('data_preprocessor') or {}).get('size')
    if padded_to:
        return tuple(padded_to), 'model.data_preprocessor.size'
    size = getattr(getattr(model, 'backbone', None), 'img_size', None)
    if size is None:
        raise UserError(
            'the size of a training image is unknown: no transform of the training pipeline '
            f'({", ".join(_SIZED_BY)}) fixes it, and there is no model.backbone.img_size'
        )
    return to_pair('model.backbone.img_size', size), 'model.backbone.img_size'


def _pipeline(cfg: Config) -> list[dict]:
    leaves = leaf_datasets(cfg.train_dataloader)
    return list(leaves[0].get('pipeline') or []) if leaves else []


# --- fake tensors ----------------------------------------------------------------------------


class _Storages(TorchDispatchMode):
    """Adds up the storages that live, and answers where fake tensors cannot.

    Attributes:
        now: Bytes of the storages that were made while this was active and still live.
        peak: The most that ``now`` has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._living: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        try:
            out = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            out = _without_numbers(func, args, kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._living:
            return

        def remove(_: weakref.ref) -> None:
            del self._living[key]
            self.now -= size

        self._living[key] = weakref.ref(storage, remove)
        self.now += size
        self.peak = max(self.peak, self.now)


def _without_numbers(func: Callable, args: tuple, kwargs: dict) -> Any:
    """The result assumed for operations that depend on values: true, one, all pixels."""
    aten = torch.ops.aten
    if func is aten._local_scalar_dense.default:  # .item(), float(), if tensor:
        kind = args[0].dtype
        return True if kind is torch.bool else 1.0 if kind.is_floating_point else 1
    if func is aten.nonzero.default:
        return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
    if func is aten.index.Tensor:
        indices = []
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                where = index.new_empty(index.numel(), dtype=torch.int64)
                indices += [where] * index.ndim
            else:
                indices.append(index)
        return func(args[0], indices, **kwargs)
    raise UserError(f'the result of {func} depends on the data, so its memory is not known before')
