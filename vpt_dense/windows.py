"""Where sliding windows lie; NumPy alone, for exported models too."""

from typing import NamedTuple

import numpy as np


class Axis(NamedTuple):
    """Where the windows lie along the height or the width of an image, in pixels."""

    starts: list[int]
    window: int
    length: int

    @classmethod
    def of(cls, length: int, crop: int, stride: int) -> 'Axis':
        """Lay windows over ``length`` pixels as mmseg does: the last one ends at the border."""
        number = max(length - crop + stride - 1, 0) // stride + 1
        window = min(crop, length)
        return cls([min(i * stride, length - window) for i in range(number)], window, length)

    def counts(self) -> np.ndarray:
        """How many windows cover each pixel: (length,) float32."""
        counts = np.zeros(self.length, np.float32)
        for start in self.starts:
            counts[start:start + self.window] += 1
        return counts
