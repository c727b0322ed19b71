"""What is said of a stream: average accuracy, forgetting."""

import statistics
from collections.abc import Sequence


def average_accuracy(matrix: Sequence[Sequence[float]]) -> float:
    """The mean accuracy of all steps behind the last.

    Args:
        matrix: Of each step t the accuracies of steps 0 to t behind it, in percent.
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
