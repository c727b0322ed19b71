"""The base of ensembles of prompts, heads and necks: members, each with its own seed."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vpt_dense.ensemble.settings import check_seeds
from vpt_dense.registry import MODELS
from vpt_dense.seeding import mix, seeded
from vpt_dense.startable import Startable


class Members(Startable):
    """Modules that are built from one config and differ in their seeds.

    What a member starts with follows from its seed and from what it is, whatever the seed of the
    run and however many members there are: an ensemble of one with seed 3 starts as the member of
    seed 3 in an ensemble of five.

    Attributes:
        members: The modules, in the order of the seeds.
        seeds: Their seeds.
    """

    def __init__(
        self,
        key: str,
        config: dict[str, Any],
        seeds: Sequence[int],
        served: dict[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        """Build the members.

        Args:
            key: The argument that ``config`` came in, for messages.
            config: Config of a member.
            seeds: A whole number for each member, all different.
            served: Further arguments of a member, where its config does not say.
            init_cfg: As in :class:`mmengine.model.BaseModule`; the members have their own.

        Raises:
            ValueError: If ``seeds`` or ``config`` is none.
        """
        super().__init__(init_cfg)
        self.seeds = check_seeds(seeds, 'seeds')
        if not isinstance(config, dict) or 'type' not in config:
            raise ValueError(f'{key} must be the config of a member, a dict, found {config!r}')
        # Heads of one model that look at different features start differently.
        self._kind = f'{config["type"]} {config.get("in_index")}'
        self.members = nn.ModuleList()
        for seed in self.seeds:
            with self._seeded('build', seed):
                self.members.append(MODELS.build(copy.deepcopy(config), default_args=served))

    def init_weights(self) -> None:
        """Start each member anew, from its own seed."""
        for seed, member in zip(self.seeds, self.members, strict=True):
            with self._seeded('init', seed):
                member.init_weights()
        self._is_init = True

    @contextlib.contextmanager
    def _seeded(self, step: str, seed: int) -> Iterator[None]:
        key = ('member', step, seed, self._kind)
        with seeded(*key):
            if not torch.cuda.is_initialized():
                yield
                return
            # The runner moves the model before it initialises it: CUDA's generator draws then.
            with torch.random.fork_rng([torch.cuda.current_device()]):
                torch.cuda.manual_seed(mix(*key)[2])
                yield

    def split(self, batch: Sequence[Any] | Tensor) -> list:
        """Take a batch, laid out member by member, apart.

        Args:
            batch: k * B things, a tensor or a list.

        Returns:
            A batch of B for each of the k members.

        Raises:
            ValueError: If the number is no multiple of k.
        """
        # len() of a tensor is a constant in an exported graph.
        size = batch.shape[0] if isinstance(batch, Tensor) else len(batch)
        number, rest = size // len(self.members), size % len(self.members)
        if rest:
            raise ValueError(
                f'a batch of {size} does not divide among the {len(self.members)} members of '
                'the ensemble: its loader needs sampler.type=vpt_dense.EnsembleSampler'
            )
        return [batch[i * number : (i + 1) * number] for i in range(len(self.members))]

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f'seeds={self.seeds}'
