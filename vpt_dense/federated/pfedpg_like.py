"""Personal prompts that the server generates: a strategy on Flower's FedAvg."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from vpt_dense import safe_files, seeding

#: The tensor that is generated: VPT's tokens.
PROMPT = 'backbone.prompt.tokens'
#: Where the prompts of all clients lie, in the folder of a run.
FILE = 'personal_prompts.safetensors'


class Generator(nn.Module):
    """Makes the prompts of a client out of a basis and a descriptor of the client.

    p_n = B + softmax((B + e_n) Wq (B Wk)^T / sqrt(C)) B Wv, over the T tokens of all layers
    together. Wv starts at zero, so that every client starts with B.

    Args:
        basis: B at the start, any shape that ends in the width C.
        seed: Of descriptors and weights.
    """

    def __init__(self, basis: Tensor, seed: int = 0) -> None:
        super().__init__()
        self.shape, self.seed = basis.shape, seed
        dims = basis.shape[-1]
        self.basis = nn.Parameter(basis.detach().clone().reshape(-1, dims))
        with seeding.seeded('generator', seed):
            self.query, self.key = (
                nn.Parameter(nn.init.xavier_uniform_(torch.empty(dims, dims))) for _ in range(2))
        self.value = nn.Parameter(torch.zeros(dims, dims))
        self.descriptors: dict[str, nn.Parameter] = {}

    def descriptor(self, client: str) -> nn.Parameter:
        """e_n, (C,), normal with the spread of B at first."""
        if client not in self.descriptors:
            with seeding.seeded('descriptor', self.seed, client):
                start = torch.randn(self.basis.shape[1]) * self.basis.detach().std()
            self.descriptors[client] = nn.Parameter(start)
        return self.descriptors[client]

    def forward(self, client: str) -> Tensor:
        """The prompts of a client, of the basis' shape."""
        asked = (self.basis + self.descriptor(client)) @ self.query  # (T, C)
        scores = asked @ (self.basis @ self.key).T / math.sqrt(self.basis.shape[1])
        return (self.basis + scores.softmax(1) @ (self.basis @ self.value)).reshape(self.shape)

    def learn(
        self, trained: Mapping[str, Tensor], weights: Mapping[str, float], eta: float
    ) -> None:
        """Take a step towards what clients made of their prompts.

        All parameters f change by eta sum_n w_n (d p_n / d f)^T (p'_n - p_n).

        Args:
            trained: Client -> p'_n.
            weights: Client -> w_n.
            eta: Length of the step. With 1, and Wv zero, B becomes the mean of p'_n.
        """
        gap = sum(weights[name] * (self(name) - prompts).pow(2).sum() / 2
                  for name, prompts in trained.items())
        parameters = [*self.parameters(), *(self.descriptors[name] for name in trained)]
        gradients = torch.autograd.grad(gap, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= eta * gradient


class PFedPGLike(FedAvg):
    """After pFedPG (https://arxiv.org/abs/2308.15367): the server learns to make personal prompts.

    What else moves is a mean by images. Not compared with the authors' code, which may differ in
    the generator; there each client also keeps its head (``personal='^head'``).

    Args:
        eta: Length of the generator's steps.
        seed: See :class:`Generator`.
        **kwargs: Of FedAvg.

    Attributes:
        names: Node -> client, which :class:`vpt_dense.federated.checked.Checked` fills in.
        generator: None: no round has begun.
    """

    def __init__(self, eta: float = 1.0, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not eta > 0:
            raise ValueError(f'eta must be above 0, found {eta}')
        self.eta, self.seed = eta, seed
        self.names: dict[int, str] = {}
        self.generator: Generator | None = None

    def name(self, node: int) -> str:
        """The client that a node is."""
        return self.names.get(node, f'node {node}')

    def personal(self, messages: Iterable[Message]) -> list[Message]:
        """The same messages, with the prompts of each client.

        :class:`vpt_dense.federated.checked.Checked` asks for them when it knows all nodes' names.
        """
        made = []
        for message in messages:
            node = message.metadata.dst_node_id
            arrays = ArrayRecord(dict(message.content['arrays']))
            with torch.no_grad():
                arrays[PROMPT] = Array(self.generator(self.name(node)).numpy())
            content = RecordDict({'arrays': arrays, 'config': message.content['config']})
            made.append(Message(content=content, message_type=message.metadata.message_type,
                                dst_node_id=node))
        return made

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg's; the first time it begins with the prompt that it is given."""
        if self.generator is None:
            start = torch.from_numpy(arrays[PROMPT].numpy().copy())
            self.generator = Generator(start, self.seed)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvg's; the prompt of the server's model is the generator's basis."""
        replies = list(replies)
        trained, images = {}, {}
        for reply in replies:
            name = self.name(reply.metadata.src_node_id)
            trained[name] = torch.from_numpy(reply.content['arrays'][PROMPT].numpy().copy())
            images[name] = float(reply.content['metrics']['num-examples'])
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            return arrays, metrics
        total = sum(images.values())
        self.generator.learn(
            trained, {name: count / total for name, count in images.items()}, self.eta)
        basis = self.generator.basis.detach().reshape(self.generator.shape)
        arrays[PROMPT] = Array(basis.numpy().copy())
        return arrays, metrics

    def save(self, folder: Path) -> None:
        """Write the prompts of all clients that have been seen, by name."""
        with torch.no_grad():
            tensors = {f'{name}.{PROMPT}': self.generator(name).contiguous()
                       for name in sorted(self.generator.descriptors)}
        safe_files.write_tensors(tensors, folder / FILE, dict(format='pt'))
