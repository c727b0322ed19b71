"""Mean and standard deviation by band, gathered piece by piece."""

from __future__ import annotations

import numpy as np


class BandStatistics:
    """Count, mean and sum of squared deviations of each band.

    Two parts are joined as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm
    for computing sample variances", 1979: no difference of large sums is taken.

    Args:
        bands: Number of bands.
    """

    def __init__(self, bands: int) -> None:
        self.count = np.zeros(bands, np.int64)
        self.mean = np.zeros(bands)
        self._squares = np.zeros(bands)

    def add(self, values: np.ndarray, is_nodata: np.ndarray) -> None:
        """Adds (H, W, bands) values, but not those that ``is_nodata``, of the same shape, marks."""
        part = BandStatistics(values.shape[2])
        for band in range(values.shape[2]):
            valid = values[..., band][~is_nodata[..., band]].astype(np.float64)
            part.count[band] = valid.size
            if valid.size:
                part.mean[band] = valid.mean()
                part._squares[band] = np.square(valid - part.mean[band]).sum()
        self.join(part)

    def join(self, other: BandStatistics) -> None:
        """Adds what another has gathered."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        apart = other.mean - self.mean
        self._squares = self._squares + other._squares + apart**2 * self.count * share
        self.mean = self.mean + apart * share
        self.count = count

    def pick(self, bands: list[int]) -> BandStatistics:
        """Those of some bands, counted from 0."""
        picked = BandStatistics(len(bands))
        picked.count, picked.mean = self.count[bands], self.mean[bands]
        picked._squares = self._squares[bands]
        return picked

    def to_dict(self) -> dict[str, list]:
        """For JSON: ``mean``, ``std`` (of the population) and ``pixels``; None where none is."""
        std = np.sqrt(self._squares / np.maximum(self.count, 1))
        return dict(
            mean=[m if n else None for m, n in zip(self.mean.tolist(), self.count, strict=True)],
            std=[s if n else None for s, n in zip(std.tolist(), self.count, strict=True)],
            pixels=self.count.tolist(),
        )
