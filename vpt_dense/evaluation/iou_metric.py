"""Mean intersection over union: counted in integers where the predictions are, no image kept."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_gather, all_reduce, get_rank
from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric as _IoUMetric

from vpt_dense.argument_checks import is_list
from vpt_dense.datasets import label_maps
from vpt_dense.datasets.label_maps import annotation_ids, ignored_id
from vpt_dense.errors import suggest
from vpt_dense.logging import tell_classes
from vpt_dense.overrides import are_of
from vpt_dense.registry import METRICS


@METRICS.register_module()
class IoUMetric(_IoUMetric):
    """mmseg's ``IoUMetric``: same arguments and numbers, in a fraction of the time.

    One table of pixel counts (label by prediction, int64) grows on the predictions' device. An
    image adds to it without a wait for a GPU, and nothing of the image is kept, so memory does not
    grow with the data set. mmseg counts in float32, which goes wrong beyond 2**24 = 16.8 million
    pixels of a class; here every count is exact.

    Results by class: the table is printed only for 20 classes or fewer, and all of them are kept,
    for :class:`vpt_dense.hooks.ReportHook` to write to JSON. ``collect_device`` has no effect:
    processes exchange their counts where their process group does. A subclass with an
    ``intersect_and_union`` of its own, or whose ``process`` fills ``results``, counts its way.

    Args:
        unseen: Names of classes that training left out. ``mIoU_seen``, ``mIoU_unseen`` and their
            harmonic mean ``hIoU`` are given beside the mean of all classes.

    Attributes:
        image_name: From the path of an image to the name of what is written of it, below
            ``output_dir``; our runner sets :func:`vpt_dense.datasets.names.image_names`. Elsewhere
            it is the file's name alone, as in mmseg.
        per_class: Of the last evaluation, for each class {'class': its name, 'IoU': percent, ...};
            None before.
    """

    per_class: list[dict[str, str | float]] | None = None
    image_name: Callable[[str], Path]

    def __init__(self, *args, unseen: Sequence[str] = (), **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not is_list(unseen):
            raise ValueError(f'IoUMetric: unseen must be a list of classes, found {unseen!r}')
        if unseen and 'mIoU' not in self.metrics:
            raise ValueError("IoUMetric: unseen needs iou_metrics=['mIoU'], found "
                             f'iou_metrics={self.metrics}')
        self.unseen = tuple(unseen)
        self.image_name = lambda path: Path(os.path.basename(path))
        self._written: dict[Path, str] = {}

    # mmseg's metric names have no prefix either; None instead of '' would warn about it.
    default_prefix = ''

    # Images of this process since the last evaluation; the counts of all of them but the last, and
    # those of the last, which may be a repeat: a sampler pads so that all processes get as many
    # images, by one image a process at most, and only `evaluate` is told how many are true.
    _images = 0
    _counts: torch.Tensor | None = None
    _last: torch.Tensor | None = None

    @_IoUMetric.dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        """What is known of the data set, its ``classes`` among it.

        Raises:
            ValueError: If ``unseen`` names none of them, or all.
        """
        classes = (meta or {}).get('classes', ())
        for name in self.unseen:
            if name not in classes:
                raise ValueError(
                    f'IoUMetric: unseen names {name!r}, which is none of the classes '
                    f'{", ".join(classes)}{suggest(name, classes)}')
        if self.unseen and set(classes) <= set(self.unseen):
            raise ValueError('IoUMetric: some classes must be seen, unseen names all of them')
        self._dataset_meta = meta

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch and, with ``output_dir``, save its predictions.

        Args:
            data_batch: Not used.
            data_samples: For each image ``pred_sem_seg`` and, unless ``format_only``,
                ``gt_sem_seg``: {'data': (1, H, W) or (H, W) integers}. With ``output_dir`` also
                ``img_path``.

        Raises:
            ValueError: If prediction and label differ in size.
        """
        if not self.format_only and not are_of(_IoUMetric, self, 'intersect_and_union'):
            super().process(data_batch, data_samples)  # a subclass counts in a way of its own
            return
        for sample in data_samples:
            prediction = _map(sample['pred_sem_seg'])
            if not self.format_only:
                self._count(prediction, _map(sample['gt_sem_seg']))
            if self.output_dir is not None:
                self._save(prediction, sample)
            self._images += 1

    def _count(self, prediction: torch.Tensor, label: torch.Tensor) -> None:
        """Make the counts those of one more image.

        A class is moved up by one in both directions of the table: row and column 0 and C + 1 take
        what is below and above the classes, row C + 2 the ignored pixels.
        """
        if prediction.shape != label.shape:
            raise ValueError(
                f'IoUMetric: the prediction is {tuple(prediction.shape)}, '
                f'the label {tuple(label.shape)} pixels (H, W)'
            )
        num_classes = len(self.dataset_meta['classes'])
        width = num_classes + 2
        if self._last is None:
            self._last = prediction.new_zeros((num_classes + 3) * width, dtype=torch.int64)
            self._counts = torch.zeros_like(self._last)
        self._counts += self._last
        # Only operations whose result has a known size: bincount, masks as indices and .item()
        # would wait for the GPU. On a CPU it is also the fastest of those tried.
        label = label.to(prediction.device, torch.int64, non_blocking=True)
        rows = label.clamp(-1, num_classes).add_(1)
        rows.masked_fill_(label == self.ignore_index, num_classes + 2)
        columns = prediction.long().clamp(-1, num_classes).add_(1)
        index = columns.add_(rows, alpha=width).flatten()
        self._last.zero_().scatter_add_(0, index, index.new_ones(1).expand_as(index))

    def _save(self, prediction: torch.Tensor, sample: dict) -> None:
        """Write a prediction as a PNG, in the ids that the data set's own masks have."""
        meta = self.dataset_meta
        reduced = sample.get('reduce_zero_label', meta.get('reduce_zero_label', False))
        label_map = meta.get('label_map')
        ids = annotation_ids(len(meta['classes']), reduced, label_map)
        name = self.image_name(sample['img_path']).with_suffix('.png')
        source = self._written.setdefault(name, sample['img_path'])
        if source != sample['img_path']:  # a runner of ours tells names that differ
            raise ValueError(
                f'IoUMetric: {source} and {sample["img_path"]} would both be {name} in '
                f'{self.output_dir}')
        label_maps.write(
            Path(self.output_dir, name), prediction.cpu().numpy(), ids,
            ignored_id(ids, reduced, self.ignore_index, label_map), sample.get('no_data'))

    def evaluate(self, size: int) -> dict[str, float]:
        """Add up the counts of all processes, compute the metrics and start anew.

        Args:
            size: Images in the data set. What a process has beyond its share is the repeat of an
                image that its sampler padded with, and is taken back.

        Returns:
            The metrics in percent, the same in every process; none with ``format_only``.

        Raises:
            ValueError: If no image was processed, or more than one of a process is beyond ``size``.
        """
        images, counts, last = self._images, self._counts, self._last
        self._images, self._counts, self._last = 0, None, None
        if any(int(number) for number in all_gather(torch.tensor([len(self.results)]))):
            return super().evaluate(size)  # a subclass counts in a way of its own
        if not images:
            print_log(
                f'{type(self).__name__} was given no image to process',
                logger='current',
                level=logging.WARNING,
            )
        shares = [int(share) for share in all_gather(torch.tensor([images]))]
        if self.format_only:
            return self.compute_metrics([])
        repeats = [_position_of_last(shares, rank) >= size for rank in range(len(shares))]
        found = sum(shares) - sum(repeats)
        if found > size:
            raise ValueError(
                f'IoUMetric: {sum(shares)} images were processed and the data set has {size}; '
                'a sampler may repeat one image a process at most'
            )
        num_classes = len(self.dataset_meta['classes'])
        areas = torch.zeros(3, num_classes, dtype=torch.int64)
        if images:
            table = counts if repeats[get_rank()] else counts + last
            table = table.view(num_classes + 3, num_classes + 2)[:-1]  # without ignored pixels
            areas = torch.stack([table.diagonal(), table.sum(0), table.sum(1)])[:, 1:-1]
            areas = areas.cpu().contiguous()  # or gloo would add up other numbers
        all_reduce(areas)
        metrics = self.compute_metrics([areas] if found else [])
        return {f'{self.prefix}/{k}' if self.prefix else k: v for k, v in metrics.items()}

    def compute_metrics(self, results: list[torch.Tensor]) -> dict[str, float]:
        """Compute the metrics of a data set.

        Args:
            results: One int64 tensor (3, num_classes): the pixels where prediction and label
                agree, of the prediction, of the label. Several are added up. Or of each image
                what ``intersect_and_union`` of a subclass returns.

        Returns:
            The metrics in percent, rounded to two decimals: ``aAcc``, ``mIoU``, ``mAcc``, ...

        Raises:
            ValueError: If there are no results.
        """
        if self.format_only:
            return super().compute_metrics(results)
        if not results:
            raise ValueError('IoUMetric has no results: the evaluated data set holds no image')
        if isinstance(results[0], torch.Tensor):
            both, predicted, labelled = sum(results)
            either = predicted + labelled - both
        else:  # of each image, as mmseg's metric keeps them
            both, either, predicted, labelled = (sum(areas) for areas in zip(*results, strict=True))
        # mmseg's arithmetic, in its float32: its numbers to the last bit, from exact counts.
        areas = [area.float() for area in (both, either, predicted, labelled)]
        values = self.total_area_to_metrics(*areas, self.metrics, self.nan_to_num, self.beta)
        metrics = {
            name if name == 'aAcc' else f'm{name}': np.round(np.nanmean(value) * 100, 2)
            for name, value in values.items()
        }
        del values['aAcc']
        if self.unseen:
            metrics.update(self._of_parts(values['IoU']))
        self._keep_classes(self.dataset_meta['classes'], values)
        return metrics

    def _of_parts(self, values: np.ndarray) -> dict[str, float]:
        """Means over seen and unseen classes, and their harmonic mean; 0 if one of them is."""
        apart = np.array([name in self.unseen for name in self.dataset_meta['classes']])
        seen, unseen = (float(np.nanmean(values[part])) * 100 for part in (~apart, apart))
        both = 2 * seen * unseen / (seen + unseen) if seen and unseen else min(seen, unseen)
        found = dict(mIoU_seen=seen, mIoU_unseen=unseen, hIoU=both)
        return {name: np.round(value, 2) for name, value in found.items()}

    def _keep_classes(self, classes: Sequence[str], values: dict[str, np.ndarray]) -> None:
        # In float64, whose shortest text has the two decimals.
        percents = {
            name: np.round(value.astype(np.float64) * 100, 2) for name, value in values.items()
        }
        prefix = f'{self.prefix}/' if self.prefix else ''
        self.per_class = [
            {'class': name}
            | {prefix + key: float(value[index]) for key, value in percents.items()}
            for index, name in enumerate(classes)
        ]
        tell_classes(
            ('class', *percents),
            [(name, *(f'{value[index]:.2f}' for value in percents.values()))
             for index, name in enumerate(classes)],
        )  # fmt: skip


def _map(data: dict[str, torch.Tensor]) -> torch.Tensor:
    """The label map (H, W), also of an image that is one pixel high."""
    return data['data'].reshape(data['data'].shape[-2:])


def _position_of_last(shares: Sequence[int], rank: int) -> int:
    """Where a process's last image stands when the processes are taken in turn, one image each.

    That is the order in which samplers hand the images out, and in which mmengine cuts the
    repeats off.

    Args:
        shares: Images of each process.
        rank: The process.

    Returns:
        A position from 0; -1 for a process without an image.
    """
    last = shares[rank] - 1
    if last < 0:
        return -1
    before = sum(min(share, last) for share in shares)
    return before + sum(share > last for share in shares[:rank])
