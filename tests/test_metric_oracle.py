"""The metric against torchmetrics' Jaccard index, an implementation of others."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt_dense.evaluation import IoUMetric


class Exact(IoUMetric):
    """Keeps the counted areas, before mmseg's rounding to two decimals."""

    def compute_metrics(self, results):
        (self.areas,) = results
        return super().compute_metrics(results)

    def _keep_classes(self, classes, values):
        """Writes no table, which would take half of the time."""


@st.composite
def evaluations(draw):
    """(number of classes, ignored id, images); an image is a pair of label ids (H, W)."""
    num_classes = draw(st.integers(2, 12))
    ignore_index = draw(st.sampled_from([255, -100, -1, 0, num_classes - 1]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Some classes never occur: in the labels, in the predictions, or in both.
    labels = draw(st.sets(st.integers(0, num_classes - 1), min_size=1))
    predictions = draw(st.sets(st.integers(0, num_classes - 1), min_size=1))
    agreement = draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    ignored = draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
    images = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, 24)), draw(st.integers(1, 24))
        label = rng.choice(sorted(labels), size)
        prediction = rng.choice(sorted(predictions), size)
        prediction = np.where(rng.random(size) < agreement, label, prediction)
        label[rng.random(size) < ignored] = ignore_index
        images.append((prediction, label))
    return num_classes, ignore_index, images


def ours(num_classes, ignore_index, images):
    """IoU of every class (NaN: absent) and mIoU as the metric gives it, fractions and percent."""
    metric = Exact(ignore_index=ignore_index)
    metric.dataset_meta = {'classes': [str(i) for i in range(num_classes)]}
    for prediction, label in images:
        sample = {'pred_sem_seg': {'data': torch.from_numpy(prediction)[None]},
                  'gt_sem_seg': {'data': torch.from_numpy(label)[None]}}  # fmt: skip
        metric.process({}, [sample])
    reported = metric.evaluate(len(images))
    both, predicted, labelled = metric.areas.double()
    return both / (predicted + labelled - both), reported['mIoU'], metric


def theirs(num_classes, ignore_index, images, average):
    from torchmetrics.functional.classification import multiclass_jaccard_index  # takes seconds

    predictions, labels = (torch.from_numpy(np.concatenate([each.ravel() for each in part]))
                           for part in zip(*images, strict=True))
    return multiclass_jaccard_index(
        predictions, labels, num_classes, average=average, ignore_index=ignore_index,
        validate_args=False).double()


@pytest.mark.filterwarnings('ignore:Mean of empty slice')  # every pixel of every image ignored
@settings(max_examples=1000, deadline=None, derandomize=True)
@given(evaluations())
def test_mean_iou_is_that_of_torchmetrics(case):
    num_classes, ignore_index, images = case
    found, reported, metric = ours(*case)
    # Absent classes: torchmetrics leaves them out of the mean as well, but for the ignored id.
    present = ~found.isnan()
    seen = [(p[label != ignore_index], label[label != ignore_index]) for p, label in images]
    predicted = np.concatenate([p for p, _ in seen])
    labelled = np.concatenate([label for _, label in seen])
    for index in range(num_classes):
        area = (predicted == index) | (labelled == index)
        assert bool(present[index]) == bool(area.any())
        counts = [((predicted == index) & (labelled == index)).sum(),
                  (predicted == index).sum(), (labelled == index).sum()]  # fmt: skip
        assert metric.areas[:, index].tolist() == counts
    if not present.any():
        assert np.isnan(reported)
        return
    classes = theirs(num_classes, ignore_index, images, 'none')
    others = [i for i in range(num_classes) if present[i]]
    torch.testing.assert_close(found[others], classes[others], rtol=0, atol=1e-6)
    mean = found[present].mean()
    if not 0 <= ignore_index < num_classes:
        macro = theirs(num_classes, ignore_index, images, 'macro')
        torch.testing.assert_close(mean, macro, rtol=0, atol=1e-6)
    # What is reported is the mean in percent, rounded to two decimals by way of float32.
    assert abs(reported - 100 * float(mean)) < 0.005 + 1e-4


def test_counts_of_an_image_beyond_float32():
    """17.8 million pixels of a class: exact, where float32 stops at 2**24 = 16,777,216."""
    height, width = 4219, 4219
    label = np.zeros((height, width), np.uint8)
    label[:3] = 1
    label[-1, ::2] = 255
    prediction = np.zeros_like(label)
    prediction[1:4, :7] = 1
    _, reported, metric = ours(2, 255, [(prediction, label)])
    seen = label != 255
    wanted = [
        [int(np.count_nonzero(seen & (prediction == i) & (label == i))) for i in range(2)],
        [int(np.count_nonzero(seen & (prediction == i))) for i in range(2)],
        [int(np.count_nonzero(seen & (label == i))) for i in range(2)],
    ]
    assert metric.areas.tolist() == wanted
    assert wanted[0][0] > 2**24 and wanted[0][0] % 2 == 1  # which float32 lacks
    ious = [b / (p + t - b) for b, p, t in zip(*wanted, strict=True)]
    assert reported == pytest.approx(100 * sum(ious) / 2, abs=0.005 + 1e-4)
