"""mmseg's ``EncoderDecoder`` whose sliding windows run together and are merged in place."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models import segmentors
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor

from vpt_dense.argument_checks import check_choice, check_count, is_int, is_list
from vpt_dense.errors import suggest
from vpt_dense.heads.eomt import EoMTHead
from vpt_dense.heads.setr import ClassifyFirst
from vpt_dense.overrides import are_of
from vpt_dense.registry import MODELS
from vpt_dense.windows import BLENDS, Axis

_TEST_KEYS = ('mode', 'crop_size', 'stride', 'windows_per_batch', 'blend')
_WINDOWS_PER_BATCH = 4


def _counts(axis: Axis, like: Tensor, blend: str = 'mean') -> Tensor:
    """What the windows weigh at each pixel: (length,), dtype and device of ``like``."""
    return torch.from_numpy(axis.counts(blend)).to(like)


def _add(total: Tensor, part: Tensor, axis: Axis, dim: int, blend: str) -> None:
    """Add a window, (classes, h, w), weighted along ``dim``, in place."""
    if blend == 'mean':
        total += part
    else:
        weights = torch.from_numpy(axis.weights(blend)).to(total)
        total += part * weights[:part.shape[dim]].view([-1 if i == dim else 1 for i in range(3)])


@MODELS.register_module()
class EncoderDecoder(segmentors.EncoderDecoder):
    """mmseg's segmentor: the same parameters, names and results; it tests faster in less memory.

    With ``test_cfg.mode='slide'`` the windows of an image, and those of all images of a batch,
    pass through the model together, ``test_cfg.windows_per_batch`` at a time. More of them keep a
    GPU busy and need memory. Windows are added in place to one map an image, of the dtype of the
    images (float32 under autocast, as in mmseg).

    Why the result is mmseg's although logits are added at a lower resolution, that of the head's
    output or, in this package's heads, that before their last upsampling:

    - Bilinear resizing treats height and width one after the other, and all windows of a row lie at
      the same height: what is done to the height commutes with their sum, whatever the stride. So
      windows are widened, a row of them is added up at the low height, and only then heightened:
      once a row instead of once a window.
    - Width and height cannot both wait. At a window's border resizing repeats the border's logits
      where the neighbour's lie, so windows have to be resized along an axis before they are added
      along it, also when they are aligned with the head's grid.
    - Steps of resizing follow each other as in mmseg: the head's, to the window's size, to that of
      the original image. One resizing does not equal two, unless one of these changes nothing; then
      it is left out.
    - Where one window covers the image there is nothing to add, only to resize.

    The same means: up to rounding. Under autocast mmseg resizes in bfloat16 or float16, here it is
    done in float32.

    A head with a way of its own to predict (more than a forward pass and a resizing) does it, for
    the windows of a batch together, and its logits have the window's size.

    Args:
        test_cfg: As in mmseg: ``mode``, ``crop_size`` and ``stride`` (height,
            width in pixels), what the head reads; ``windows_per_batch`` (int), by default 4; and
            ``blend``, how windows that overlap are averaged: ``mean`` (default), as in mmseg, or
            ``hann``, with less weight towards their borders
            (:meth:`vpt_dense.windows.Axis.weights`).
        **kwargs: As in :class:`mmseg.models.EncoderDecoder`.

    Raises:
        ValueError: If test_cfg has a misspelt key or a value that cannot be served.
    """

    def __init__(self, *, test_cfg: dict | None = None, **kwargs) -> None:
        _check(test_cfg)
        super().__init__(test_cfg=test_cfg, **kwargs)
        if isinstance(self.decode_head, EoMTHead):
            invite = getattr(self.backbone, 'invite', None)
            if invite is None or self.with_neck or self.with_auxiliary_head:
                raise ValueError(
                    'decode_head: EoMTHead needs a vision transformer of vpt_dense as the '
                    'backbone, and neither neck nor auxiliary_head')
            invite(self.decode_head)

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """As mmpretrain's classifiers have it, for its learning rates that fall with depth."""
        return self.backbone.get_layer_depth(param_name, 'backbone.')

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Compute logits by sliding windows.

        Args:
            inputs: Images, (B, C, H, W), floating point.
            batch_img_metas: What mmseg knows of each image.

        Returns:
            Logits (B, classes, H, W), dtype of the images: means over the windows, weighted as
            ``test_cfg.blend`` says.
        """
        results = self._slide(inputs, batch_img_metas)
        first = next(results)
        if len(inputs) == 1:
            return first[None]
        logits = first.new_empty(len(inputs), *first.shape)
        logits[0] = first
        del first
        for index in range(1, len(inputs)):
            logits[index] = next(results)
        return logits

    def each_logits(self, inputs: Tensor, batch_img_metas: list[dict]) -> Iterator[Tensor]:
        """Compute logits in the mode of ``test_cfg`` and hand them out image by image.

        Only one image's map exists at a time if the caller lets go of it before the next.

        Args:
            inputs: Images, (B, C, H, W), floating point.
            batch_img_metas: What mmseg knows of each image.

        Yields:
            Logits (classes, H, W) of each image, in order. With ``mode='whole'``
            ``windows_per_batch`` images pass through the model together.
        """
        if self.test_cfg['mode'] == 'slide':
            yield from self._slide(inputs, batch_img_metas)
            return
        number = self.test_cfg.get('windows_per_batch', _WINDOWS_PER_BATCH)
        for start in range(0, len(inputs), number):
            part = slice(start, start + number)
            yield from self.whole_inference(inputs[part], batch_img_metas[part])

    def restore(self, logits: Tensor, img_meta: dict) -> Tensor:
        """Undo padding, mirroring and resizing of an image on its logits.

        Args:
            logits: (classes, H, W).
            img_meta: ``ori_shape``, the size (height, width) to return to, and if they apply
                ``img_padding_size`` or ``padding_size`` (left, right, top, bottom in pixels),
                ``flip`` and ``flip_direction``.

        Returns:
            Logits (classes, height, width) of the original size; no copy if nothing was to be
            undone.

        Raises:
            ValueError: If the image was flipped neither horizontally nor vertically.
        """
        return self._resize(self.undo(logits, img_meta), img_meta['ori_shape'])

    def undo(self, logits: Tensor, img_meta: dict) -> Tensor:
        """As :meth:`restore`, but for the size."""
        padding = img_meta.get('img_padding_size', img_meta.get('padding_size', (0, 0, 0, 0)))
        left, right, top, bottom = padding
        height, width = logits.shape[1:]
        logits = logits[:, top:height - bottom, left:width - right]
        if img_meta.get('flip'):
            axes = {'horizontal': 2, 'vertical': 1}
            direction = img_meta.get('flip_direction')
            if direction not in axes:
                raise ValueError(
                    f'flip direction {direction!r} cannot be undone, only {sorted(axes)} can')
            logits = logits.flip(axes[direction])
        return logits

    def postprocess_result(self, seg_logits: Tensor, data_samples: list | None = None) -> list:
        """Put predictions into data samples, at the images' original size.

        Args:
            seg_logits: (B, classes, H, W).
            data_samples: Of the images; without them nothing is resized.

        Returns:
            Data samples with ``seg_logits`` (classes, ...), floating point, after a sigmoid if
            there is but one channel, and ``pred_sem_seg`` (1, ...), labels.
        """
        if data_samples is None:
            return super().postprocess_result(seg_logits)
        for logits, sample in zip(seg_logits, data_samples, strict=True):
            logits = self.restore(logits, sample.metainfo)
            if len(logits) == 1:
                logits = logits.sigmoid()
            sample.set_data(dict(
                seg_logits=PixelData(data=logits),
                pred_sem_seg=PixelData(data=self.classify(logits)),
            ))
        return data_samples

    def classify(self, scores: Tensor) -> Tensor:
        """Turn scores into labels.

        Args:
            scores: (classes, H, W): monotonous in the probabilities; probabilities if there is
                but one channel.

        Returns:
            Labels (1, H, W): int64, of the dtype of the scores if there is but one channel.
        """
        if len(scores) > 1:
            return scores.argmax(dim=0, keepdim=True)
        return (scores > self.decode_head.threshold).to(scores)

    def _slide(self, inputs: Tensor, metas: list[dict]) -> Iterator[Tensor]:
        """As :meth:`each_logits`."""
        _check(self.test_cfg)
        rows, columns = (
            Axis.of(*axis) for axis in zip(
                inputs.shape[2:], self.test_cfg['crop_size'], self.test_cfg['stride'], strict=True)
        )
        parts = self._window_logits(inputs, metas, rows, columns)
        for _ in range(len(inputs)):
            yield self._merge(parts, rows, columns, inputs.dtype)

    def _window_logits(
        self, inputs: Tensor, metas: list[dict], rows: Axis, columns: Axis
    ) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
        """Compute the logits of one window after the other, of all images.

        Yields:
            Logits (classes, h, w) and the sizes to which they are to be resized, in turn; the last
            one is the window's.
        """
        predicts_plainly = (
            are_of(segmentors.EncoderDecoder, self, 'encode_decode')
            and isinstance(self.decode_head, BaseDecodeHead)
            and are_of(BaseDecodeHead, self.decode_head, 'predict', 'predict_by_feat')
        )
        upsamples_last = (
            isinstance(self.decode_head, ClassifyFirst) and self.decode_head.upsamples_last())
        size = torch.Size((rows.window, columns.window))  # this type tells mmseg's heads: a window
        windows = [(i, y, x) for i in range(len(inputs)) for y in rows.starts
                   for x in columns.starts]
        number = self.test_cfg.get('windows_per_batch', _WINDOWS_PER_BATCH)
        for start in range(0, len(windows), number):
            batch = windows[start:start + number]
            crops = torch.stack(
                [inputs[i, :, y:y + rows.window, x:x + columns.window] for i, y, x in batch])
            sizes = [size]
            if not predicts_plainly:
                logits = self.encode_decode(crops, [{**metas[i], 'img_shape': size}
                                                    for i, _, _ in batch])
            elif upsamples_last:
                logits = self.decode_head.small_scores(self.extract_feat(crops))
                scale = self.decode_head.last_upsampling().scale_factor
                sizes = [tuple(int(length * scale) for length in logits.shape[2:]), size]
            else:
                logits = self.decode_head(self.extract_feat(crops))
            for index in range(len(batch)):
                yield logits[index], sizes
            del logits  # before the next ones are there

    def _merge(
        self, parts: Iterator[tuple], rows: Axis, columns: Axis, dtype: torch.dtype
    ) -> Tensor:
        """The mean of the windows of one image: logits (classes, H, W)."""
        if len(rows.starts) == len(columns.starts) == 1:
            part, sizes = next(parts)
            for size in sizes:
                part = self._resize(part, size, dtype)
            return part.to(dtype)
        total, blend = None, self.test_cfg.get('blend', 'mean')
        for y in rows.starts:
            band = None
            for x in columns.starts:
                part, sizes = next(parts)  # (classes, h, w)
                classes, height, _ = part.shape
                full_height = all(height == h for h, _ in sizes)
                if total is None and (full_height or len(rows.starts) > 1):
                    total = part.new_zeros(classes, rows.length, columns.length, dtype=dtype)
                if band is None and full_height:
                    band = total[:, y:y + rows.window]
                elif band is None:
                    band = part.new_zeros(classes, height, columns.length, dtype=dtype)
                for _, width in sizes:
                    part = self._resize(part, (height, width), dtype)
                if full_height and blend != 'mean':
                    part = part * torch.from_numpy(rows.weights(blend)).to(part)[:, None]
                _add(band[:, :, x:x + columns.window], part, columns, 2, blend)
                del part  # a view of all windows of its batch
            if not full_height:
                band /= _counts(columns, band, blend)
                for height, _ in sizes:
                    band = self._resize(band, (height, columns.length))
                if len(rows.starts) == 1:
                    return band
                _add(total[:, y:y + rows.window], band, rows, 1, blend)
        counts = _counts(rows, total, blend)[:, None]
        total /= counts * _counts(columns, total, blend) if full_height else counts
        return total

    def _resize(
        self, logits: Tensor, size: tuple[int, int], dtype: torch.dtype | None = None
    ) -> Tensor:
        """Resize logits (classes, h, w) bilinearly, in ``dtype``; nothing if they have the size."""
        if logits.shape[1:] == tuple(size):
            return logits
        return resize(
            logits[None].to(dtype or logits.dtype), tuple(size), mode='bilinear',
            align_corners=self.align_corners, warning=False)[0]


def _check(test_cfg: dict[str, Any] | None) -> None:
    """Refuse what cannot be served.

    Raises:
        ValueError: Names the key.
    """
    if not test_cfg:
        return  # a model that is only trained
    for key in test_cfg:
        hint = suggest(key, _TEST_KEYS, cutoff=0.8)
        if key not in _TEST_KEYS and hint:
            raise ValueError(f"model.test_cfg has no '{key}'{hint}")
    mode = test_cfg.get('mode')
    check_choice(mode, 'model.test_cfg.mode', ('slide', 'whole'))
    check_choice(test_cfg.get('blend', 'mean'), 'model.test_cfg.blend', BLENDS)
    number = test_cfg.get('windows_per_batch', _WINDOWS_PER_BATCH)
    check_count(number, 'model.test_cfg.windows_per_batch')
    if mode == 'whole':
        return
    for key in ('crop_size', 'stride'):
        value = test_cfg.get(key)
        if not is_list(value) or len(value) != 2 or not all(is_int(n, 1) for n in value):
            raise ValueError(f"model.test_cfg.{key} must be (height, width) in pixels for "
                             f"mode='slide', found {value!r}")
    crop_size, stride = test_cfg['crop_size'], test_cfg['stride']
    if any(step > size for step, size in zip(stride, crop_size, strict=True)):
        raise ValueError(f'model.test_cfg.stride {tuple(stride)} exceeds crop_size '
                         f'{tuple(crop_size)}: no window would see the pixels between')
