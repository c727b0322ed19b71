"""Testing at several scales and mirrored, images of equal size together."""

from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models import segmentors
from torch import Tensor, nn

from vpt_dense.overrides import are_of
from vpt_dense.registry import MODELS
from vpt_dense.segmentors.encoder_decoder import EncoderDecoder

#: Rows of pixels whose probabilities are computed at a time: what they need stays in a CPU's cache.
_ROWS = 8


@MODELS.register_module()
class SegTTAModel(segmentors.SegTTAModel):
    """mmseg's test-time augmentation with the same predictions, faster in a fraction of the memory.

    Versions of an image that have the same size, as the image and its mirror image have, are one
    batch for the segmentor, whose ``test_cfg.windows_per_batch`` bounds what runs at a time. The
    probabilities of each version are added to a sum as soon as they are known: besides the sum
    there is one version's map, whereas mmseg keeps those of all versions.

    Different from mmseg: images of a batch may differ in size; a data sample is that of an
    image's first version, without ``seg_logits`` (mmseg leaves those of the last version there);
    the sum is float32 at least; a model with a single channel gets its sigmoid once, not twice.

    Where a subclass, of this class or of the segmentor, has a method of its own in place of one
    that this way leaves out (``merge_preds``; ``predict``, ``slide_inference``,
    ``postprocess_result``, ...), mmseg's way is taken: one version after the other passes the
    segmentor's ``test_step``, and :meth:`merge_preds` merges them.

    Args:
        module: A :class:`vpt_dense.segmentors.EncoderDecoder`.
        **kwargs: As in :class:`mmseg.models.SegTTAModel`.

    Raises:
        ValueError: If the module is another one.
    """

    def __init__(self, module: dict | nn.Module, **kwargs) -> None:
        super().__init__(module=module, **kwargs)
        if not isinstance(self.module, EncoderDecoder):
            raise ValueError(
                "tta_model.type='vpt_dense.SegTTAModel' needs a model of type "
                f"'vpt_dense.EncoderDecoder', found {type(self.module).__name__}; take "
                "tta_model.type='mmseg.SegTTAModel'")
        if hasattr(self.module, 'task_heads'):
            raise ValueError(
                "tta_model.type='vpt_dense.SegTTAModel' merges the labels of one task, the model "
                "has task_heads; set tta_model.type='vpt_dense.MultiTaskTTAModel' and "
                'tta_pipeline=None')

    def test_step(self, data: dict[str, list[list[Any]]]) -> list:
        """Predict the labels of images from all their versions.

        Args:
            data: ``inputs``, images (C, H, W), and ``data_samples``, for each augmentation a list
                of the images of the batch.

        Returns:
            A data sample for each image, with ``pred_sem_seg`` (1, height, width) at the original
            size.
        """
        if not self._is_ours():
            return super().test_step(data)
        probabilities, samples = self.average(data)
        for scores, sample in zip(probabilities, samples, strict=True):
            sample.set_data(dict(pred_sem_seg=PixelData(data=self.module.classify(scores))))
        return samples

    def _is_ours(self) -> bool:
        """Whether every method that :meth:`average` does without is the one that it stands for."""
        left_out = ('test_step', 'forward', '_run_forward', 'predict', 'inference',
                    'slide_inference', 'postprocess_result')
        return (
            are_of(SegTTAModel, self, 'merge_preds')
            and are_of(EncoderDecoder, self.module, *left_out)
        )

    def merge_preds(self, data_samples_list: list[list]) -> list:
        """Merge the predictions of all versions of each image.

        Args:
            data_samples_list: For each image the data samples of its versions, with ``seg_logits``
                (classes, height, width); probabilities if there is but one channel.

        Returns:
            As :meth:`test_step`.
        """
        for versions in data_samples_list:
            maps = [sample.seg_logits.data for sample in versions]
            dtype = torch.promote_types(maps[0].dtype, torch.float32)
            total = sum(
                each.to(dtype).softmax(dim=0) if len(each) > 1 else each.to(dtype) for each in maps)
            labels = self.module.classify(total / len(maps))
            versions[0].set_data(dict(pred_sem_seg=PixelData(data=labels)))
        return [versions[0] for versions in data_samples_list]

    def average(self, data: dict[str, list[list[Any]]]) -> tuple[list[Tensor], list]:
        """Average the probabilities of all versions of the images.

        Args:
            data: As in :meth:`test_step`.

        Returns:
            For each image the probabilities (classes, height, width) of the original size, float32
            at least, and the data sample of its first version.
        """
        groups: dict[torch.Size, list[tuple[int, int]]] = {}
        for version, images in enumerate(data['inputs']):
            for index, image in enumerate(images):
                groups.setdefault(image.shape, []).append((version, index))
        totals: dict[int, Tensor] = {}
        samples = {}
        for places in groups.values():
            batch = self.module.data_preprocessor(
                {key: [values[version][index] for version, index in places]
                 for key, values in data.items()})
            metas = [sample.metainfo for sample in batch['data_samples']]
            results = self.module.each_logits(batch['inputs'], metas)
            for (version, index), sample, meta in zip(
                    places, batch['data_samples'], metas, strict=True):
                if version == 0:
                    samples[index] = sample
                logits = self.module.restore(next(results), meta)
                if index not in totals:
                    totals[index] = torch.zeros_like(
                        logits, dtype=torch.promote_types(logits.dtype, torch.float32))
                _add_probabilities(totals[index], logits)
                del logits  # before the next ones are there
        images = range(len(totals))
        return [totals[i].div_(len(data['inputs'])) for i in images], [samples[i] for i in images]


def _add_probabilities(total: Tensor, logits: Tensor) -> None:
    """Add the probabilities of logits (classes, H, W) to a sum, in place."""
    for into, part in zip(total.split(_ROWS, dim=1), logits.split(_ROWS, dim=1), strict=True):
        part = part.to(total.dtype)
        into += part.softmax(dim=0) if len(part) > 1 else part.sigmoid()
