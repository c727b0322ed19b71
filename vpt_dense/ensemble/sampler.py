"""The order of the training images of an ensemble."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import Sampler

from vpt_dense.argument_checks import check_count
from vpt_dense.ensemble.settings import check_seeds
from vpt_dense.registry import DATA_SAMPLERS
from vpt_dense.seeding import Position, PositionSampler


@DATA_SAMPLERS.register_module()
class EnsembleSampler(Sampler):
    """Gives every member of an ensemble a batch of its own, one member after the other.

    Member j gets, in this order, the images of a run with seed j, with the augmentation of that
    run: its indices are :class:`vpt_dense.seeding.Position` of that seed. The loader's
    ``batch_size`` must be k times that of a member; the last batch of an epoch may be smaller, the
    same for all.

    Args:
        sampler: Config of the sampler of a member.
        seeds: Of the members.
        batch_size: Images of a member in a step and process.
        dataset: The data set; filled in.
        seed: Of the run; not used: members have their own.

    Raises:
        ValueError: If an argument is wrong.
    """

    def __init__(
        self,
        sampler: dict[str, Any],
        seeds: Sequence[int],
        batch_size: int,
        dataset: Any,
        seed: int | None = None,
    ) -> None:
        if not isinstance(sampler, dict) or 'seed' in sampler:
            raise ValueError(
                'sampler.sampler must be the config of a sampler without seed, which would be '
                f'that of all members; found {sampler!r}'
            )
        self.batch_size = check_count(batch_size, 'sampler.batch_size')
        seeds = check_seeds(seeds, 'sampler.seeds')
        self.members = [PositionSampler(dict(sampler), dataset, seed) for seed in seeds]

    @property
    def is_infinite(self) -> bool:
        """Whether the indices never end."""
        return self.members[0].is_infinite

    def set_epoch(self, epoch: int) -> None:
        """Begin the epoch ``epoch``, counted from 0."""
        for member in self.members:
            member.set_epoch(epoch)

    def __iter__(self) -> Iterator[Position]:
        """Iterate: B indices of member 0, B of member 1, ..., B of member 0, ..."""
        streams = [iter(member) for member in self.members]
        while True:
            for stream in streams:
                batch = list(islice(stream, self.batch_size))
                if not batch:
                    return
                yield from batch

    def __len__(self) -> int:
        """Return the number of indices of an epoch in this process, of all members."""
        return sum(map(len, self.members))
