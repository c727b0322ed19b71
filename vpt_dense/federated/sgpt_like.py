"""The server of shared and group prompts: a strategy on Flower's FedAvg."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from vpt_dense.argument_checks import is_number
from vpt_dense.errors import UserError

#: Up to so many images of a group in all clients, its keys are a mean of all alike.
_FEW = 50
KEYS, GROUP = 'backbone.prompt.keys', 'backbone.prompt.group'


class SGPTLike(FedAvg):
    """After SGPT (https://arxiv.org/abs/2310.18285).

    Head, shared and group prompts are means by images; the key of a group is one by the images of
    that group, each client alike where these are 50 or fewer. Group prompts and keys then move
    slowly: new = m old + (1 - m) mean. The share of the images of each group goes to the clients
    of the next round.

    Args:
        groups: How many.
        momentum: m, at least 0 and below 1.
        **kwargs: Of FedAvg.

    Attributes:
        share: Of the images of each group in the last round.
    """

    def __init__(self, groups: int, momentum: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= momentum < 1:
            raise ValueError(f'momentum must be at least 0 and below 1, found {momentum}')
        self.groups, self.momentum = groups, momentum
        self.share = [1 / groups] * groups
        self.before: dict[str, np.ndarray] = {}

    def check(self, metrics: MetricRecord) -> None:
        """Refuse a client whose groups are none.

        Raises:
            UserError: If so.
        """
        counts = metrics.get('group-counts')
        if not (isinstance(counts, list) and len(counts) == self.groups
                and all(is_number(count) and count >= 0 for count in counts)):
            raise UserError(f'its images are of groups {counts!r}, not of {self.groups}')

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg's, with the shares of the groups."""
        self.before = {name: arrays[name].numpy() for name in (KEYS, GROUP)}
        config['group-share'] = list(self.share)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvg's; keys by groups, momentum for keys and group prompts."""
        replies = list(replies)
        counts = np.array([reply.content['metrics']['group-counts'] for reply in replies])
        keys = np.array([reply.content['arrays'][KEYS].numpy() for reply in replies])
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            return arrays, metrics
        found = mean_keys(keys, counts)
        for name, mean in ((KEYS, found), (GROUP, arrays[GROUP].numpy())):
            new = self.momentum * self.before[name] + (1 - self.momentum) * mean
            arrays[name] = Array(new.astype(np.float32))
        total = counts.sum()
        if total:
            self.share = (counts.sum(0) / total).tolist()
        return arrays, metrics


def mean_keys(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of the keys of each group over clients.

    Args:
        keys: (clients, G, C).
        counts: Images of each group, (clients, G).

    Returns:
        (G, C), weighted by images of the group; all alike for groups of 50 images or fewer.
    """
    totals = counts.sum(0)
    weights = np.where(totals > _FEW, counts / np.maximum(totals, 1), 1 / len(counts))
    return (weights[:, :, None] * keys).sum(0)
