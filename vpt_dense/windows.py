"""Where sliding windows lie; NumPy alone, for exported models too."""

from typing import NamedTuple

import numpy as np

#: How windows that overlap are averaged.
BLENDS = ('mean', 'hann')


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

    def weights(self, blend: str = 'mean') -> np.ndarray:
        """How much each pixel of a window counts: (window,) float32, above 0.

        Args:
            blend: One of :data:`BLENDS`: ``mean``, all the same; ``hann``, Hann's window
                sin^2(pi (i + 1/2) / window), less towards the borders, where a model sees least.
        """
        if blend == 'mean':
            return np.ones(self.window, np.float32)
        places = (np.arange(self.window) + 0.5) / self.window
        return (np.sin(np.pi * places) ** 2).astype(np.float32)

    def counts(self, blend: str = 'mean') -> np.ndarray:
        """The weights of all windows at each pixel, added up: (length,) float32."""
        counts, weights = np.zeros(self.length, np.float32), self.weights(blend)
        for start in self.starts:
            counts[start:start + self.window] += weights
        return counts
