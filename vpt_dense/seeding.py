"""Randomness that depends on where a run is, not on how it got there.

What a training iteration draws (dropout, mixup) follows from (seed, rank, iteration), what a
training sample draws (augmentation) from (seed, rank, epoch, place in the epoch). So a resumed run
draws what the uninterrupted one draws, with any number of loader workers, and a checkpoint needs
no state of a generator: it holds the seed and the iteration.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler


def mix(*key: int | str) -> tuple[int, list[int], int]:
    """Seeds for python, numpy and torch that follow from ``key``.

    A hash, because sums such as seed + rank + iteration meet: the run of seed 1 would draw what
    that of seed 0 draws one iteration later.

    Returns:
        For ``random.seed`` (64 bits), ``numpy.random.seed`` (4 words of 32 bits),
        ``torch.manual_seed`` (63 bits: torch takes signed numbers).
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=32).digest()
    words = [int.from_bytes(digest[i : i + 4], 'little') for i in range(8, 24, 4)]
    return int.from_bytes(digest[:8], 'little'), words, int.from_bytes(digest[24:], 'little') >> 1


def seed_step(seed: int, rank: int, iteration: int) -> None:
    """Seed the generators of python, numpy and torch, CUDA's included, for a training iteration.

    Args:
        seed: Of the run.
        rank: Of this process.
        iteration: Counted from 0.
    """
    for_python, for_numpy, for_torch = mix('step', seed, rank, iteration)
    random.seed(for_python)
    np.random.seed(for_numpy)
    if torch.cuda.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(for_torch)
    else:  # the same, but not 0.2 ms for noting what CUDA shall be seeded with if it ever starts
        torch.default_generator.manual_seed(for_torch)


@contextlib.contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Seed the generators of python, numpy and torch (CPU) inside, put them back afterwards.

    CUDA's are left alone: samples are made on the CPU, and a forked worker must not touch CUDA.
    """
    generator = torch.default_generator
    before = random.getstate(), np.random.get_state(), generator.get_state()
    for_python, for_numpy, for_torch = mix(*key)
    random.seed(for_python)
    np.random.seed(for_numpy)
    generator.manual_seed(for_torch)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        generator.set_state(before[2])


class Position(int):
    """An index into a data set that knows its place in the run.

    Attributes:
        key: (seed, rank, epoch, place in the epoch); what the sample draws
            follows from it. It travels to the workers with the index.
    """

    def __new__(cls, index: int, key: tuple[int, ...] = ()) -> 'Position':
        """Make one; ``key`` is empty only while pickle restores it."""
        position = super().__new__(cls, index)
        position.key = key
        return position


class PositionSampler(Sampler):
    """A sampler around another one: its indices, as :class:`Position`.

    Args:
        sampler: Config of the sampler, or the sampler.
        dataset: The data set, for the sampler.
        seed: Of the run, for the sampler and for the samples; the same in all processes.
    """

    def __init__(self, sampler: dict | Sampler, dataset: Any, seed: int) -> None:
        if isinstance(sampler, dict):
            sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.sampler = sampler
        self.seed = seed
        self.epoch = 0
        self._first = 0

    @property
    def is_infinite(self) -> bool:
        """Whether the indices never end (mmengine's InfiniteSampler and its like have `skip`)."""
        return getattr(self.sampler, 'is_infinite', hasattr(self.sampler, 'skip'))

    def set_epoch(self, epoch: int) -> None:
        """Begin the epoch ``epoch``, counted from 0."""
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def start_at(self, first: int) -> None:
        """Leave out the first ``first`` indices of this process, once: of the next iteration."""
        self._first = first

    def reseed(self, seed: int) -> None:
        """Take the seed of a checkpoint, before anything is drawn."""
        if getattr(self.sampler, 'seed', None) == self.seed:
            self.sampler.seed = seed
        self.seed = seed

    def __iter__(self) -> Iterator[Position]:
        """Iterate."""
        first, self._first = self._first, 0
        key = self.seed, get_rank(), self.epoch
        for i, index in enumerate(islice(self.sampler, first, None), first):
            # Those of an ensemble's members know their own.
            yield index if isinstance(index, Position) else Position(int(index), (*key, i))

    def __len__(self) -> int:
        """Return the number of indices of an epoch in this process, those left out included."""
        return len(self.sampler)


class DatasetAround(Dataset):
    """A data set around another one: attributes are read and set there.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: Any) -> None:
        self.__dict__['dataset'] = dataset

    def __getitem__(self, index: int) -> Any:
        """Return a sample."""
        return self.dataset[index]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        """Read from the data set what is not here."""
        if name.startswith('__') or 'dataset' not in self.__dict__:  # being copied or unpickled
            raise AttributeError(f'{type(self).__name__} has no attribute {name!r}')
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set on the data set, e.g. a hook that switches the pipeline."""
        setattr(self.dataset, name, value)


class SeededDataset(DatasetAround):
    """A data set around another one, whose samples follow from their :class:`Position`.

    Everything else is the data set's own: attributes are read and set there.

    Args:
        dataset: The data set; its indices as :class:`Position` give seeded samples, plain ones
            what they give without this class.
    """

    # DataLoader would hand whole batches to a data set that has this, past __getitem__.
    __getitems__ = None

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset)
        self.__dict__['draws'] = None

    def repeat(self, draws: int) -> None:
        """Let what a sample draws repeat: with pass n over the data it draws as with n + draws."""
        self.__dict__['draws'] = draws, get_world_size()

    def __getitem__(self, index: int) -> Any:
        """Return a sample."""
        if not isinstance(index, Position):
            return self.dataset[index]
        with seeded(*self._key(index)):
            return self.dataset[int(index)]

    def _key(self, index: Position) -> tuple[int | str, ...]:
        """What a sample's draws follow from."""
        if self.draws is None:
            return 'sample', *index.key
        seed, rank, epoch, place = index.key
        draws, processes = self.draws
        # Samplers without an end count no epochs: their place tells how often all were seen.
        passed = epoch + (place * processes + rank) // len(self)
        return 'draw', seed, int(index), passed % draws


def start_at(loader: DataLoader, batches: int) -> int:
    """Make the next iteration over a loader leave out its first batches, without loading them.

    Args:
        loader: A training loader.
        batches: Batches of this process that an earlier run has seen.

    Returns:
        The batches that are left over, which the caller must load and drop: 0, or all where the
        sampler does not let itself be advanced (loaders built elsewhere, own batch samplers).
    """
    sampler = loader.batch_sampler
    if type(sampler) is not BatchSampler or not isinstance(sampler.sampler, PositionSampler):
        return batches
    sampler.sampler.start_at(batches * sampler.batch_size)
    return 0
