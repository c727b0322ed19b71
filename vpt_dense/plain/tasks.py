"""A classifier and a segmentor on a tuned backbone."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from vpt_dense.argument_checks import check_choice, check_count
from vpt_dense.errors import UserError, suggest
from vpt_dense.plain import files, models

#: How many images are read together, and how many pixels pass a model together at most.
TOGETHER, MOST_PIXELS = 16, 2**22
#: The name of the file in a folder of ``save_pretrained`` and in repositories of the hub.
HUB_FILE = 'delta.safetensors'


class _OnBackbone(
    nn.Module, ModelHubMixin, library_name='vpt_dense', tags=['visual-prompt-tuning']
):
    """A head on a tuned backbone; folders and repositories hold what was tuned.

    Attributes:
        builder: How :func:`vpt_dense.load` builds it again.
    """

    def __init__(self, backbone: nn.Module, builder: dict[str, Any]) -> None:
        super().__init__()
        self.backbone, self.builder = backbone, builder
        told = getattr(backbone, 'pretrained_cfg', None) or {}
        for name, usual in (('mean', 0.5), ('std', 0.5)):
            values = torch.tensor(told.get(name) or [usual] * 3, dtype=torch.float32)
            self.register_buffer(name, values[:, None, None], persistent=False)

    def normalise(self, image: Any) -> Tensor:
        """An image as the backbone was trained on it, (1, 3, H, W).

        Args:
            image: Path or ``PIL.Image``, which are turned as their EXIF tags say, or array
                (H, W, 3) of uint8, RGB.
        """
        if not isinstance(image, np.ndarray):
            from PIL import Image, ImageOps

            if isinstance(image, (str, Path)):
                with Image.open(image) as opened:
                    image = ImageOps.exif_transpose(opened).convert('RGB')
            elif isinstance(image, Image.Image):
                image = ImageOps.exif_transpose(image)
        array = np.asarray(image)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise UserError(
                f'predict: an image is an RGB array (H, W, 3) of uint8, found {array.dtype} '
                f'{array.shape}')
        pixels = torch.from_numpy(array.copy()).to(self.mean.device).permute(2, 0, 1)
        return ((pixels / 255 - self.mean) / self.std)[None]

    @torch.no_grad()
    def _scores(self, pixels: Tensor) -> Tensor:
        """What the model gives in eval mode; the mode stays what it is."""
        trains = [module for module in self.modules() if module.training]
        if not trains:
            return self(pixels)
        try:
            return self.eval()(pixels)
        finally:
            for module in trains:
                module.training = True

    def _prepare(self, image: Any) -> tuple[Tensor, tuple[int, int]]:
        """What passes the model (1, 3, H, W), and the height and width of the result."""
        raise NotImplementedError

    def _result(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """What scores of one image (1, ...) mean."""
        raise NotImplementedError

    def predict_batch(self, images: Sequence[Any]) -> list[Tensor]:
        """As ``predict`` of each image; of :data:`TOGETHER` those of one size are one pass."""
        found: dict[int, Tensor] = {}
        for start in range(0, len(images), TOGETHER):
            groups: dict[tuple[int, ...], list[tuple[int, Tensor, tuple[int, int]]]] = {}
            for i, image in enumerate(images[start:start + TOGETHER], start):
                pixels, size = self._prepare(image)
                groups.setdefault(tuple(pixels.shape[-2:]), []).append((i, pixels, size))
            for (height, width), group in groups.items():
                number = max(1, MOST_PIXELS // (height * width))
                for part in (group[k:k + number] for k in range(0, len(group), number)):
                    scores = self._scores(torch.cat([pixels for _, pixels, _ in part]))
                    for k, (i, _, size) in enumerate(part):
                        found[i] = self._result(scores[k:k + 1], size)
        return [found[i] for i in range(len(images))]

    def _save_pretrained(self, save_directory: Path) -> None:
        files.save_delta(self, save_directory / HUB_FILE)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, revision: str | None = None, cache_dir: str | None = None,
        force_download: bool = False, local_files_only: bool = False,
        token: str | bool | None = None, base: str | None = None, **further: Any,
    ) -> nn.Module:
        known = inspect.signature(cls).parameters  # what the folder's config.json holds of these
        strange = [name for name in further if name not in known]
        if strange:
            raise UserError(
                f'from_pretrained: there is no argument {strange[0]!r}'
                f'{suggest(strange[0], ["base", "revision", "token", "cache_dir"])}')
        file = Path(model_id, HUB_FILE)
        if not Path(model_id).is_dir():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(
                model_id, HUB_FILE, revision=revision, cache_dir=cache_dir,
                force_download=force_download, local_files_only=local_files_only, token=token))
        model = files.load(file, base)
        if not isinstance(model, cls):
            raise UserError(f'{model_id} holds a {type(model).__name__}, no {cls.__name__}')
        return model


class Classifier(_OnBackbone, pipeline_tag='image-classification'):
    """A linear classifier of the backbone's pooled features."""

    def __init__(self, backbone: nn.Module, num_classes: int, builder: dict[str, Any]) -> None:
        super().__init__(backbone, builder)
        self.head = nn.Linear(backbone.num_features, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to scores (B, num_classes)."""
        return self.head(self.backbone(images))

    def predict(self, image: Any) -> Tensor:
        """Probabilities (num_classes,) of an image, see :meth:`normalise`.

        The image is resized to the size that the backbone was made for.
        """
        return self.predict_batch([image])[0]

    def _prepare(self, image: Any) -> tuple[Tensor, tuple[int, int]]:
        size = tuple(self.backbone.patch_embed.img_size)
        pixels = F.interpolate(
            self.normalise(image), size, mode='bicubic', antialias=True, align_corners=False)
        return pixels, size

    def _result(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        return scores[0].softmax(0)


class Segmentor(_OnBackbone, pipeline_tag='image-segmentation'):
    """A linear head on maps of some blocks: batch norm and a 1x1 convolution.

    The linear evaluation of DINOv2 and DINOv3 (https://arxiv.org/abs/2304.07193, section 7.4;
    https://arxiv.org/abs/2508.10104): maps after the backbone's last norm, dropout while training.

    Args:
        backbone: A tuned one.
        num_classes: Of pixels.
        indices: Blocks that are read, negative ones counted from the end.
        dropout: Of channels of the maps.
        builder: See the attribute.
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int, indices: Sequence[int], dropout: float,
        builder: dict[str, Any],
    ) -> None:
        super().__init__(backbone, builder)
        number = len(backbone.blocks)
        self.indices = [i % number for i in indices if -number <= i < number]
        if not indices or len(self.indices) != len(indices):
            raise UserError(
                f'create_segmentor: indices must name some of the {number} blocks, found '
                f'{list(indices)}')
        width = backbone.embed_dim * len(self.indices)
        self.head = nn.Sequential(
            nn.BatchNorm2d(width), nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))
        nn.init.normal_(self.head[2].weight, std=0.01)
        nn.init.zeros_(self.head[2].bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to scores (B, num_classes, H, W)."""
        maps = self.backbone.forward_intermediates(
            images, indices=self.indices, norm=True, intermediates_only=True)
        scores = self.head(torch.cat(list(maps), dim=1))
        return F.interpolate(
            scores, tuple(images.shape[-2:]), mode='bilinear', align_corners=False)

    def predict(self, image: Any) -> Tensor:
        """Classes (H, W), int64, of an image's pixels; see :meth:`normalise`.

        It is enlarged to the next size that the patches divide, and the scores are resized back.
        """
        return self.predict_batch([image])[0]

    def _prepare(self, image: Any) -> tuple[Tensor, tuple[int, int]]:
        pixels = self.normalise(image)
        size = tuple(pixels.shape[-2:])
        patch = self.backbone.patch_size_pixels()
        whole = tuple(-(-side // each) * each for side, each in zip(size, patch, strict=True))
        if whole != size:
            pixels = F.interpolate(pixels, whole, mode='bilinear', align_corners=False)
        return pixels, size

    def _result(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        if tuple(scores.shape[-2:]) != size:
            scores = F.interpolate(scores, size, mode='bilinear', align_corners=False)
        return scores[0].argmax(0)


def create_classifier(
    name: str, num_classes: int, method: Any = 'deep', **options: Any
) -> Classifier:
    """Build a classifier on a tuned backbone: ``model(images)`` gives scores (B, num_classes).

    Args:
        name: As in :func:`vpt_dense.create_backbone`.
        num_classes: Number of classes.
        method: As there.
        **options: As there.

    Raises:
        UserError: As there.

    Example:
        >>> import torch, vpt_dense
        >>> model = vpt_dense.create_classifier(
        ...     'deit_tiny_patch16_224', 3, 'lora', pretrained=False)
        >>> model(torch.zeros(2, 3, 224, 224)).shape
        torch.Size([2, 3])
    """
    check_count(num_classes, 'num_classes')
    backbone = models.create_backbone(name, method, **options)
    return Classifier(
        backbone, num_classes, dict(task='classifier', arguments=dict(num_classes=num_classes)))


def create_segmentor(
    name: str, num_classes: int, method: Any = 'deep', *, head: str = 'linear',
    indices: Sequence[int] = (-1,), dropout: float = 0.1, **options: Any,
) -> Segmentor:
    """Build a segmentor on a tuned backbone: ``model(images)`` gives scores (B, K, H, W).

    Args:
        name: As in :func:`vpt_dense.create_backbone`.
        num_classes: Number K of classes of pixels.
        method: As there.
        head: 'linear'; SETR, UperNet and Segmenter are heads of MMSegmentation, for configs.
        indices: Blocks whose maps the head reads.
        dropout: Of channels, before the head, while training.
        **options: As there.

    Raises:
        UserError: As there, or if there is no such head or block.

    Example:
        >>> import torch, vpt_dense
        >>> model = vpt_dense.create_segmentor('deit_tiny_patch16_224', 3, 'deep', pretrained=False)
        >>> model.eval()(torch.zeros(2, 3, 224, 224)).shape
        torch.Size([2, 3, 224, 224])
    """
    check_count(num_classes, 'num_classes')
    check_choice(head, 'head', ('linear',))
    backbone = models.create_backbone(name, method, **options)
    arguments = dict(num_classes=num_classes, indices=list(indices), dropout=dropout)
    return Segmentor(
        backbone, num_classes, indices, dropout, dict(task='segmentor', arguments=arguments))


#: Name in a file -> what builds it.
BUILDERS: dict[str, Callable[..., nn.Module]] = dict(
    classifier=create_classifier, segmentor=create_segmentor)
