"""Making exported files: a graph of the whole model, checked against it before it is kept."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.cnn.bricks.transformer import AdaptivePadding
from torch import Tensor, nn

import vpt_dense
from vpt_dense import pretraining, safe_files, tasks
from vpt_dense.adapters import merge_adapters
from vpt_dense.argument_checks import to_pair
from vpt_dense.checkpoints import deltas
from vpt_dense.deploy import card as cards
from vpt_dense.deploy import graphs
from vpt_dense.errors import UserError
from vpt_dense.predicting.model import ModelPredictor
from vpt_dense.tree import kind_of, leaf_datasets

#: Largest share of labels that may differ, where two classes are as likely.
OTHER_LABELS = 1e-3
#: Bytes of weights that fit into an ONNX file, whose format ends at 2 GiB.
_IN_ONE_FILE = 1_900_000_000


def load(
    checkpoint: str, config: str | None = None, base: str | None = None, cfg_options: Any = None,
    method: str | None = None,
) -> ModelPredictor:
    """Load a model to export, in float32: weights that a run holds in half precision too.

    Args:
        checkpoint: Checkpoint, delta, or a run's folder.
        config: Its config; None: the one that it holds.
        base: Pretrained weights that a delta builds on.
        cfg_options: Settings that go over the config's.
        method: What trained, if the config is a recipe.

    Raises:
        UserError: If a file is absent, damaged or of another model.
    """
    said = dict(config=config, base=base, method=method)
    predictor = vpt_dense.load(checkpoint, cfg_options=cfg_options, **said)
    if predictor.cfg.model.get('backbone', {}).get('frozen_dtype') is None:
        return predictor
    options = {'model.backbone.frozen_dtype': None}
    if isinstance(cfg_options, dict):
        options = {**cfg_options, **options}
    elif cfg_options:
        options = [*cfg_options, 'model.backbone.frozen_dtype=None']
    return vpt_dense.load(checkpoint, cfg_options=options, **said)


class Prepared(nn.Module):
    """Images as files have them to what the model's layers take: channels in order, normalised.

    Args:
        predictor: The model.

    Attributes:
        normalises: Whether it has mean and standard deviation.
    """

    def __init__(self, predictor: ModelPredictor) -> None:
        super().__init__()
        preprocessor = predictor.model.data_preprocessor
        self.flip = _flips(predictor)
        mean, std = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        if preprocessor._enable_normalize:
            mean, std = preprocessor.mean, preprocessor.std
        self.register_buffer('mean', mean.detach().clone().float(), persistent=False)
        self.register_buffer('std', std.detach().clone().float(), persistent=False)
        self.normalises = preprocessor._enable_normalize

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), R first, to the same, normalised."""
        if self.flip:
            images = images.flip(1)
        return (images - self.mean) / self.std if self.normalises else images


class Exportable(nn.Module):
    """Images to scores: what is in an exported graph.

    Args:
        predictor: The model.
        resize: Give scores at the size of the input; of segmentation alone.
        argmax: Give labels.

    Attributes:
        resize: Whether scores have the size of the input: where asked for, and where a head cannot
            do without.
        outputs: The names of what it gives: of several tasks theirs.
    """

    def __init__(self, predictor: ModelPredictor, resize: bool, argmax: bool) -> None:
        super().__init__()
        self.model = predictor.model
        task = tasks.TASKS[predictor.task]
        self.dense = task.dense
        self.argmax = argmax
        self.several = bool(predictor.of_tasks)
        # Normals that were resized are no unit vectors.
        self.finish = self.model.decode_head.finish if (
            self.dense and not task.classes and not self.several) else None
        self.resize = self.dense and (resize or argmax or not _is_plain(self.model))
        self.prepare = Prepared(predictor)
        self.outputs = tuple(predictor.of_tasks) or ('labels' if argmax else 'logits',)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute scores.

        Args:
            images: (B, C, H, W), float32, R first, in the range that the card names.

        Returns:
            Segmentation: logits (B, channels, h, w), or (B, channels, H, W) with ``resize``, or
            labels (B, H, W), int64. Classification: logits (B, classes), or labels (B,). Maps of
            numbers: (B, channels, h, w), metres or unit vectors, or with ``resize`` (B, channels,
            H, W). Of several tasks a tuple of these; of edges logits.
        """
        images = self.prepare(images)
        if self.several:
            return self._of_tasks(images)
        if self.resize:
            scores = self.model.encode_decode(images, [dict(img_shape=images.shape[2:])])
        else:
            scores = self.model(images, mode='tensor')
        if self.finish is not None:
            scores = self.finish(scores)
        if not self.argmax:
            return scores
        if self.dense and scores.shape[1] == 1:
            return (scores[:, 0].sigmoid() > self.model.decode_head.threshold).long()
        return scores.argmax(dim=1)


    def _of_tasks(self, images: Tensor) -> tuple[Tensor, ...]:
        """Of normalised images (B, C, H, W) what each task's head finds."""
        found, meta = [], dict(img_shape=images.shape[2:])
        with self.model.of_tasks(images) as names:
            for _ in names:
                head = self.model.decode_head
                scores = self.model.encode_decode(images, [meta]) if self.resize else head(
                    self.model.extract_feat(images))
                found.append(head.finish(scores) if hasattr(head, 'finish') else scores)
        return tuple(found)


def _is_plain(model: nn.Module) -> bool:
    """Whether a segmentor's prediction is the scores of its heads, resized, and nothing else."""
    from mmseg.models import segmentors
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    from vpt_dense.overrides import are_of

    of_tasks = getattr(model, 'task_heads', None)
    heads = [model.decode_head] if of_tasks is None else of_tasks.values()
    return are_of(segmentors.EncoderDecoder, model, 'encode_decode') and (
        of_tasks is not None or are_of(segmentors.EncoderDecoder, model, '_forward')
    ) and all(isinstance(head, BaseDecodeHead) and are_of(
        BaseDecodeHead, head, 'predict', 'predict_by_feat') for head in heads)


def _flips(predictor: ModelPredictor) -> bool:
    """Whether the model takes B first, given images that have R first."""
    preprocessor = predictor.model.data_preprocessor
    converts = getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'to_rgb', False))
    return from_files(predictor) != bool(converts) and channels_of(predictor.model) == 3


def from_files(predictor: ModelPredictor) -> bool:
    """Whether the pipeline loads images that have B first."""
    steps = _steps(predictor)
    return bool(steps) and steps[0].get('color_type', 'color') == 'color' and kind_of(
        steps[0]) == 'LoadImageFromFile'


def _steps(predictor: ModelPredictor) -> Sequence[dict]:
    tests = leaf_datasets(predictor.cfg.get('test_dataloader'))
    return predictor.cfg.get('test_pipeline') or (tests[0].get('pipeline') if tests else []) or []


def channels_of(model: nn.Module) -> int:
    """Channels of the images that a model takes, those that an image prompt adds not counted."""
    prompt = getattr(model.backbone, 'image_prompt', None)
    if prompt is not None:
        return prompt.in_channels
    return next(m for m in model.backbone.modules() if isinstance(m, nn.Conv2d)).in_channels


# --- what can be exported --------------------------------------------------------------------


def check(predictor: ModelPredictor, dynamic: bool, kind: str) -> None:
    """Refuse a model of which no graph can be made.

    Args:
        predictor: The model.
        dynamic: Whether its images may be of any size.
        kind: 'onnx' or 'pt2'.

    Raises:
        UserError: If so; the message names the key.
    """
    model, backbone = predictor.model, predictor.model.backbone
    task = tasks.TASKS[predictor.task]
    task.has('exports', 'an exported model')
    if task.regions:
        from vpt_dense.deploy import detectors

        if detectors.check(model) == 'query boxes' and dynamic:
            raise UserError(
                '--dynamic: the encoder of DINO is laid out for one size of images; export with '
                '--size HEIGHT WIDTH')
    elif not task.dense:
        from mmpretrain.models.heads import ClsHead

        from vpt_dense.ensemble.heads import EnsembleClsHead
        from vpt_dense.overrides import are_of

        head = model.head
        plain = isinstance(head, EnsembleClsHead) or isinstance(head, ClsHead) and are_of(
            ClsHead, head, '_get_predictions')
        if not plain:
            raise UserError(
                f'model.head: {type(head).__name__} cannot be exported: its predictions are no '
                'softmax of its scores')
        if getattr(head, '_check_mapping', None):
            head._check_mapping()
    if 'images' in predictor.of_tasks:
        raise UserError('model.task_heads.images: the graph calls what it takes so; give the task '
                        'another name')
    size = sum(tensor.numel() * 4 for tensor in model.state_dict().values())
    if kind == 'onnx' and size > _IN_ONE_FILE:
        raise UserError(
            f'the model has {size / 1e9:.1f} GB of weights, an ONNX file holds 2 GB; take '
            '--format pt2')
    preprocessor = model.data_preprocessor
    padding = {**(getattr(preprocessor, 'test_cfg', None) or {})}
    if task.dense:
        padding.pop('size_divisor', None)  # the card says it
    if padding or not task.regions and getattr(
            preprocessor, 'pad_size_divisor', 1) not in (None, 1):
        raise UserError(
            'model.data_preprocessor pads images at test time (test_cfg, pad_size_divisor), of '
            'which only test_cfg.size_divisor is a part of exported models; leave the others out')
    if not dynamic:
        return
    way = 'export with --size HEIGHT WIDTH, without --dynamic'
    if 'open sizes' not in getattr(backbone, 'offers', ('open sizes',)):
        raise UserError(
            f'model.backbone: windows or places in {type(backbone).__name__} are laid out for '
            f'one size of images; {way}')
    if kind == 'onnx':
        for name, module in model.named_modules():
            if name.startswith(tasks.AUXILIARY):
                continue
            size = getattr(module, 'output_size', None)
            if isinstance(module, nn.AdaptiveAvgPool2d) and size not in (1, (1, 1)):
                raise UserError(
                    f'model.{name} pools maps to {size} places, which ONNX has for one size of '
                    f'images alone; {way}, or --format pt2')
        made = type(getattr(backbone, 'prompt', None)).__name__
        sides = [type(a).__name__ for a in getattr(backbone, 'adapters', ())]
        if made == 'VAPTPrompt' or tasks.is_of_images(dict(model.named_children())) and (
                'SideNetwork' in sides):
            key = 'prompt' if made == 'VAPTPrompt' else 'adapters'
            raise UserError(
                f'model.backbone.{key}: {made if key == "prompt" else "SideNetwork"} pools maps to '
                f'a fixed number of places, which ONNX has for one size of images alone; {way}, or '
                '--format pt2')


def fold(model: nn.Module) -> list[str]:
    """Merge adapters into the weights and turn prompts into constants, where that is exact.

    Returns:
        A line for each, also for what stays as it is.
    """
    backbone, lines = model.backbone, []
    if len(getattr(backbone, 'adapters', ())):
        names = ', '.join(type(adapter).__name__ for adapter in backbone.adapters)
        try:
            merge_adapters(backbone)
            lines.append(f'{names} merged into the weights')
        except ValueError:
            lines.append(f'{names} kept as they are: no linear map of one layer')
    prompt = getattr(backbone, 'prompt', None)
    if prompt is not None:
        name = type(prompt).__name__
        try:
            keys_values = deltas.fold_prompt(backbone, 'the model')
        except UserError:
            lines.append(f'{name} kept as it is: more than keys and values')
        else:
            deltas.put_folded(backbone, *keys_values)
            lines.append(f'{name} made constants, keys and values')
    for head in model.children():
        if hasattr(head, 'fold_texts'):
            try:
                lines += ['texts of the classes made constants'] * head.fold_texts()
            except UserError:
                lines.append('texts of the classes are computed for each image, as it asks for')
    return lines


class _Corner(nn.Module):
    """mmcv's ``AdaptivePadding`` at the lower right for images whose size is open."""

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Pad (B, C, H, W) to whole patches."""
        height, width = x.shape[2:]
        return nn.functional.pad(x, (0, -width % self.stride[1], 0, -height % self.stride[0]))


def _open_sizes(model: nn.Module) -> None:
    """Exchange, in place, the parts of a model that need to know the size of images."""
    embed = getattr(model.backbone, 'patch_embed', None)
    padding = getattr(embed, 'adaptive_padding', None)
    if isinstance(padding, AdaptivePadding):
        plain = padding.padding == 'corner' and tuple(padding.kernel_size) == tuple(padding.stride)
        if not plain:
            raise UserError(
                'model.backbone.patch_cfg pads in a way that needs the size of images; export with '
                '--size HEIGHT WIDTH, without --dynamic')
        embed.adaptive_padding = _Corner(padding.stride)
    parts = dict(model.named_children())
    if not tasks.is_dense(parts):
        return
    from mmseg.models.utils import Upsample

    class _Whole(Upsample):
        """By a whole factor."""

        def forward(self, x: Tensor) -> Tensor:
            size = [length * int(self.scale_factor) for length in x.shape[-2:]]
            return nn.functional.interpolate(
                x, size=size, mode=self.mode, align_corners=self.align_corners)

    for module in parts[tasks.of(parts).head].modules():
        if type(module) is Upsample and not module.size and module.scale_factor.is_integer():
            module.__class__ = _Whole


# --- graphs ----------------------------------------------------------------------------------


def sizes_of(predictor: ModelPredictor, size: Sequence[int] | None) -> tuple[int, int]:
    """The size of images that a file is exported for.

    Args:
        predictor: The model.
        size: What the user asks for; None: the windows of ``test_cfg``, else the image size of
            the backbone.

    Raises:
        UserError: If neither is known, or the windows are of another size or are weighted.
    """
    model = predictor.model
    test_cfg = getattr(model, 'test_cfg', None) or {}
    window = test_cfg.get('crop_size') if test_cfg.get('mode') == 'slide' else None
    if window is not None and test_cfg.get('blend', 'mean') != 'mean':
        raise UserError(
            f'model.test_cfg.blend is {test_cfg["blend"]!r}, but who runs an exported model takes '
            'the plain mean of windows; add --cfg-options model.test_cfg.blend=mean')
    if size is not None:
        if window is not None and tuple(size) != tuple(window):
            raise UserError(
                f'--size {size[0]} {size[1]}: the windows of model.test_cfg.crop_size are '
                f'{window[0]}x{window[1]}; leave --size out, or add --cfg-options '
                'model.test_cfg.mode=whole')
        return tuple(size)
    found = window or predictor.cfg.model.backbone.get('img_size')
    if found is None:
        found = getattr(model.backbone, 'img_size', None)
    if found is None:
        found = 224
    return to_pair('model.backbone.img_size', found)


def graph(
    module: nn.Module, channels: int, size: Sequence[int], dynamic: bool, batches: bool = True
) -> 'torch.export.ExportedProgram':
    """Make the graph of a module of images, for batches of any size.

    Args:
        module: From images (B, channels, H, W) to a tensor.
        channels: Of the images.
        size: (height, width) in pixels.
        dynamic: Whether that may be any other.
        batches: Whether there may be several images; else there is one.

    Raises:
        UserError: If there is none.
    """
    # Not the size that the position embedding was made for, nor a square: so that neither is taken
    # for settled.
    height, width = (size[0] + 8, size[1] + 24) if dynamic else size
    axes = [0] * batches + [2, 3] * dynamic
    shapes = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    images = torch.zeros(1 + batches, channels, height, width)
    try:
        with torch.no_grad(), graphs.quietly():
            return torch.export.export(module, (images,), dynamic_shapes=(shapes,), strict=False)
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        what = 'with images of any size' if dynamic else f'with images of {height}x{width} pixels'
        model = getattr(module, 'model', module)
        parts = dict(model.named_children())
        task = tasks.of(parts)
        head = next((parts[key] for key in task.heads if key in parts), None) if task else None
        raise UserError(
            f'{type(getattr(model, "backbone", model)).__name__} with {type(head).__name__} cannot '
            f'be exported {what}: {graphs.first_line(error)}'
            + ('; try --size HEIGHT WIDTH, without --dynamic' if dynamic else '')
        ) from error


def export(
    predictor: ModelPredictor,
    out: str | Path,
    kind: str,
    size: Sequence[int] | None = None,
    dynamic: bool = False,
    resize: bool = False,
    argmax: bool = False,
) -> dict[str, Any]:
    """Export a model to a file, which is there only if it computes what the model computes.

    Args:
        predictor: The model, on the CPU, in float32; it is changed (folded).
        out: The file to write.
        kind: 'onnx' or 'pt2'.
        size: (height, width) of the images in pixels; None: see :func:`sizes_of`.
        dynamic: Take images of any size.
        resize: Give segmentation's scores at the size of the input.
        argmax: Give labels.

    Returns:
        The card of the file.

    Raises:
        UserError: If the model cannot be exported, or the file differs from it by more than
            :data:`vpt_dense.deploy.graphs.TOLERANCE` or :data:`OTHER_LABELS`.
    """
    if kind == 'onnx':
        cards.needed('onnx', 'onnxscript', 'onnxruntime')
    task = tasks.TASKS[predictor.task]
    if resize and not task.dense:
        raise UserError(f'--resize is for segmentation, this model is of {predictor.task}')
    if argmax and not (task.classes and not task.regions):
        raise UserError(f'--argmax is for scores of classes, this model is of {predictor.task}: '
                        'leave it out')
    check(predictor, dynamic, kind)
    size = sizes_of(predictor, size)
    if task.regions:
        from vpt_dense.deploy import detectors

        return detectors.export(predictor, out, kind, size, dynamic)
    model = predictor.model.requires_grad_(False).eval()
    module = Exportable(predictor, resize, argmax).eval()
    channels = channels_of(model)
    samples = [_noise(number, channels, size, seed) for seed, number in enumerate((1, 3))]
    if dynamic:
        samples.append(_noise(2, channels, (size[0] // 2 + 5, size[1] + 3), 2))
    try:
        with torch.no_grad():
            wanted = [_arrays(module(torch.from_numpy(sample))) for sample in samples]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f'the model does not take images of {size[0]}x{size[1]} pixels: '
            f'{graphs.first_line(error)}'
        ) from error
    for line in fold(model):
        print(line)
    if dynamic:
        _open_sizes(model)
    program = graph(module, channels, size, dynamic)
    card = describe(predictor, module, None if dynamic else size, channels)
    write = graphs.write_onnx if kind == 'onnx' else graphs.write_pt2
    with safe_files.atomic(out) as unfinished:
        run = write(program, unfinished, card)
        shapes = ', '.join('x'.join(map(str, sample.shape)) for sample in samples)
        what = 'share of labels that differ' if argmax else 'largest difference'
        given = [run(sample) for sample in samples]
        for i, name in enumerate(module.outputs):
            of_model, of_file = ([each[i] for each in of] for of in (wanted, given))
            worst = compare(of_model, of_file, argmax)
            limit = OTHER_LABELS if argmax else graphs.TOLERANCE * max(
                abs(each).max() for each in of_model)
            said = f'{what} from the model {worst:.2g} (at most {limit:.2g}) on images of {shapes}'
            said = f'{name}: {said}' if module.several else said
            if not worst <= limit:
                raise UserError(f'{out} is not written: {said}')
            print(said)
    return card


def _arrays(found: Tensor | tuple[Tensor, ...]) -> list[np.ndarray]:
    return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]


def compare(wanted: list[np.ndarray], found: list[np.ndarray], labels: bool) -> float:
    """The largest difference of scores, or the largest share of labels that differ.

    Raises:
        UserError: If shapes differ.
    """
    worst = 0.0
    for one, other in zip(wanted, found, strict=True):
        if one.shape != other.shape:
            raise UserError(f'the exported graph gives {other.shape}, the model {one.shape}')
        gap = (one != other).mean() if labels else abs(one.astype(np.float64) - other).max()
        worst = max(worst, float(gap)) if gap == gap else float('nan')
        if worst != worst:
            break
    return worst


def _noise(number: int, channels: int, size: Sequence[int], seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (number, channels, *size)).astype(np.float32)


def describe(
    predictor: ModelPredictor, module: nn.Module, size: Sequence[int] | None, channels: int
) -> dict[str, Any]:
    """The card of a file: all that is needed to predict with it."""
    model, task = predictor.model, tasks.TASKS[predictor.task]
    dense = task.dense
    steps, problem = cards.pipeline_of(_steps(predictor))
    origin = predictor.describe()
    card = dict(
        format=cards.FORMAT,
        version=vpt_dense.__version__,
        task=predictor.task,
        classes=list(predictor.classes),
        ids=list(predictor.ids),
        ignored_id=predictor.ignored_id,
        palette=predictor.palette,
        input=dict(
            name='images', layout='NCHW', dtype='float32', channels=channels,
            order='RGB' if channels == 3 else 'as in the file',
            range='0 to 255; mean and standard deviation are inside the graph'
            if module.prepare.normalises else 'as the pipeline gives them',
            size=None if size is None else list(size)),
        output=dict(
            name=predictor.task if getattr(module, 'finish', None) else module.outputs[0],
            **(dict(names=list(module.outputs)) if predictor.of_tasks else {}),
            resized=getattr(module, 'resize', False) or not dense),
        pipeline=steps,
        pipeline_problem=problem,
        quantized=None,
        checkpoint=os.path.basename(str(origin.get('checkpoint'))),
        **{key: origin[key] for key in ('sha256', 'iter', 'epoch') if key in origin},
    )
    weights = pretraining.of_config(predictor.cfg.model.backbone)
    if weights is not None:
        card['licence'] = pretraining.licence_note(weights)
    if dense:
        test_cfg = model.test_cfg
        tests = leaf_datasets(predictor.cfg.get('test_dataloader'))
        card |= dict(
            reduce_zero_label=bool(tests and tests[0].get('reduce_zero_label')) or (
                min(predictor.ids, default=0) == 1),
            align_corners=bool(model.align_corners),
            threshold=model.decode_head.threshold if model.out_channels == 1 else None,
            test=dict(
                mode=test_cfg['mode'],
                **{key: list(test_cfg[key]) for key in ('crop_size', 'stride')
                   if test_cfg['mode'] == 'slide'},
                padding=_padding(module)),
        )
    if predictor.of_tasks:
        card['tasks'] = {name: asdict(each) for name, each in predictor.of_tasks.items()}
    elif dense and not task.classes:  # of the files that hold its maps
        scale = float((tests[0] if tests else {}).get('depth_scale') or 1)
        card['maps'] = dict(scale=scale, farthest=getattr(model.decode_head, 'max_depth', None))
    return card


def _padding(module: Exportable) -> dict[str, Any] | None:
    """What mmseg's preprocessor adds at the lower right: to a multiple of what, which values."""
    preprocessor = module.model.data_preprocessor
    divisor = (getattr(preprocessor, 'test_cfg', None) or {}).get('size_divisor')
    if not divisor:
        return None
    prepare = module.prepare
    values = (prepare.mean + preprocessor.pad_val * prepare.std).flatten().tolist()
    return dict(divisor=divisor, values=values[::-1] if prepare.flip else values)
