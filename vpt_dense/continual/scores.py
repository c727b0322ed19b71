"""What is said of a stream: average accuracy, forgetting, forward transfer."""

import statistics
from collections.abc import Sequence


def average_accuracy(matrix: Sequence[Sequence[float]]) -> float:
    """The mean accuracy of all steps behind the last.

    Args:
        matrix: Of each step t the accuracies of steps 0 to t behind it, in percent (the mIoU of a
            segmentor); those of later steps may follow.
    """
    return statistics.fmean(matrix[-1])


def forgetting(matrix: Sequence[Sequence[float]]) -> float | None:
    """The mean loss from the best that a step ever had to what it has in the end.

    Chaudhry et al., ECCV 2018, https://arxiv.org/abs/1801.10112, section 3.2. The last step is left
    out; None where it is the only one.
    """
    last = len(matrix) - 1
    if not last:
        return None
    return statistics.fmean(
        max(matrix[t][step] for t in range(step, last)) - matrix[last][step]
        for step in range(last))


def forward_transfer(own: Sequence[float], alone: Sequence[float]) -> float | None:
    """The mean of what earlier steps add to a step, the first left out.

    That of GEM (https://arxiv.org/abs/1706.08840) is of a step before it is trained, where a last
    layer of new classes knows nothing; so here it is of the step just behind its training.

    Args:
        own: Accuracy of each step just behind its training, among its own classes.
        alone: The same of a model that was trained on the step alone, from the start.

    Returns:
        None where there is one step.
    """
    if len(own) < 2:
        return None
    return statistics.fmean(a - b for a, b in zip(own[1:], alone[1:], strict=True))
