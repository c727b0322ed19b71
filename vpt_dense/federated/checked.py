"""A strategy of Flower behind checks: who is refused is named, and the round goes on."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import DifferentialPrivacyClientSideAdaptiveClipping, Strategy
from flwr.supercore import log
from flwr.supercore.differential_privacy import KEY_NORM_BIT

from vpt_dense.argument_checks import is_int, is_number
from vpt_dense.errors import UserError
from vpt_dense.federated import moved

#: Seconds that clients have to say who they are.
_PATIENCE = 300.0
_SILENT = 'it did not answer in time'
#: What every client sends beside its tensors.
_METRICS = ('num-examples', 'clients', 'loss', 'seconds')


class Checked(Strategy):
    """Hands to a strategy what may come into a mean, in the order of the clients' names.

    So the same clients give the same sum to the bit, whoever answered first.

    Args:
        strategy: Flower's.
        kind: What all clients must be.
        done: Rounds of an earlier run.
        test_every: Rounds between the tests of what clients keep; 0: they do not test.
        least: Clients that must be connected before a round begins: Flower takes a share of those
            that are there when it begins to wait.

    Attributes:
        rounds: What happened, an entry a round: ``round``, ``trained`` (clients), ``refused``
            (client -> why), ``images``, ``loss`` (their mean by images), ``bytes_down``,
            ``bytes_up`` (of all clients together); where clients test, ``scores`` and ``untested``
            (client -> why).
    """

    def __init__(
        self, strategy: Strategy, kind: moved.Kind, done: int = 0, test_every: int = 0,
        least: int = 1,
    ) -> None:  # fmt: skip
        self.strategy, self.kind, self.done, self.test_every = strategy, kind, done, test_every
        self.least = least
        self.rounds: list[dict[str, Any]] = []
        self._names: dict[int, str] = {}
        self._asked: dict[int, str] = {}
        self._down = 0

    def name(self, node: int) -> str:
        """The client that a node is, as far as it has said it."""
        return self._names.get(node, f'node {node}')

    def greet(self, grid: Grid) -> None:
        """Ask nodes that are not known yet who they are."""
        unknown = [node for node in grid.get_node_ids() if node not in self._names]
        if not unknown:
            return
        messages = [Message(content=RecordDict(), message_type=MessageType.QUERY, dst_node_id=node)
                    for node in unknown]
        for reply in grid.send_and_receive(messages, timeout=_PATIENCE):
            if not reply.has_error() and 'who' in reply.content:
                self._names[reply.metadata.src_node_id] = str(reply.content['who']['name'])

    def _nodes(self, messages: Iterable[Message]) -> dict[int, str]:
        """Node -> client, of those that are asked."""
        return {message.metadata.dst_node_id: self.name(message.metadata.dst_node_id)
                for message in messages}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy's."""
        while (there := len(list(grid.get_node_ids()))) < self.least:
            log(INFO, '%d of %d clients are connected: waiting', there, self.least)
            time.sleep(1)
        if hasattr(self.strategy, 'names'):
            self.strategy.names = self._names
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self.greet(grid)  # those that the strategy has waited for
        if hasattr(self.strategy, 'personal'):
            messages = self.strategy.personal(messages)
        self._asked = self._nodes(messages)
        self._down = sum(_bytes(message) for message in messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As the strategy's, of those replies that pass."""
        passed, refused = [], {}
        silent = dict(self._asked)
        replies = list(replies)
        for reply in replies:
            node = reply.metadata.src_node_id
            silent.pop(node, None)
            reason = self._fault(reply, self._check_training)
            if reason:
                refused[self.name(node)] = reason
            else:
                passed.append((self.name(node), node, reply))
        refused |= dict.fromkeys(silent.values(), _SILENT)
        for name, count in Counter(name for name, _, _ in passed).items():
            if count > 1:  # its images would count several times
                refused[name] = f'{count} nodes say that they are it: give each a name of its own'
        passed = [each for each in passed if each[0] not in refused]
        refused = dict(sorted(refused.items()))
        for name, reason in refused.items():
            log(WARNING, 'round %d: %s is left out: %s', server_round + self.done, name, reason)
        passed.sort(key=lambda each: each[:2])
        names, kept = [each[0] for each in passed], [each[2] for each in passed]
        images = [int(reply.content['metrics']['num-examples']) for reply in kept]
        losses = [float(reply.content['metrics']['loss']) for reply in kept]
        up = sum(_bytes(reply) for reply in replies if not reply.has_error())
        self.rounds.append(dict(
            round=server_round + self.done, trained=names, refused=refused, images=sum(images),
            loss=sum(a * b for a, b in zip(images, losses, strict=True)) / max(1, sum(images)),
            bytes_down=self._down, bytes_up=up))
        if not kept:
            log(WARNING, 'round %d: no client is left, nothing changes', server_round + self.done)
            return None, None
        if hasattr(self.strategy, 'num_sampled_clients'):  # noise is for a mean of those that came
            self.strategy.num_sampled_clients = len(kept)
        arrays, metrics = self.strategy.aggregate_train(server_round, kept)
        if arrays is None:  # Bulyan of too few
            reason = f'{type(self.strategy).__name__} makes nothing of {len(kept)} clients'
            log(WARNING, 'round %d: %s, nothing changes', server_round + self.done, reason)
            refused |= dict.fromkeys(names, reason)
            self.rounds[-1] |= dict(trained=[], refused=dict(sorted(refused.items())))
        return (None if arrays is None else self._whole(arrays, server_round)), metrics

    def _fault(self, reply: Message, check: Callable[[RecordDict], None]) -> str:
        """Why a reply must not be used; empty: it may."""
        if reply.has_error():
            lines = str(reply.error.reason or f'error {reply.error.code}').strip().splitlines()
            return lines[-1] if lines else f'error {reply.error.code}'
        try:
            check(reply.content)
        except UserError as error:
            return str(error)
        except Exception as error:  # whatever a client sends, the others go on
            return f'its message cannot be read ({type(error).__name__}: {error})'
        return ''

    def _check_training(self, content: RecordDict) -> None:
        """Refuse what must not come into a mean."""
        kind = moved.Kind.from_text(str(content['member']['kind']))
        moved.compare(kind._replace(shapes=self.kind.shapes), self.kind)
        arrays = {name: array.numpy() for name, array in content['arrays'].items()}
        moved.check(arrays, self.kind.shapes)
        if list(arrays) != list(self.kind.shapes):
            raise UserError('its tensors come in another order')
        if (len(content.array_records), len(content.metric_records)) != (1, 1):
            raise UserError('it sends more than one record of tensors or of metrics')
        self._check_metrics(content['metrics'])

    def _check_metrics(self, metrics: MetricRecord) -> None:
        """Refuse metrics that a strategy could not put beside those of others."""
        wanted = set(_METRICS)
        if hasattr(self.strategy, 'check'):
            self.strategy.check(metrics)
            wanted.add('group-counts')
        if isinstance(self.strategy, DifferentialPrivacyClientSideAdaptiveClipping):
            wanted.add(KEY_NORM_BIT)
        odd = sorted(wanted ^ set(metrics))
        if odd:
            raise UserError(f'its metrics lack {odd[0]}, or have it in addition')
        images, clients = metrics['num-examples'], metrics['clients']
        if not (is_int(images, 1) and is_int(clients, 1) and clients == 1):
            raise UserError(f'it says that it is {clients!r} clients with {images!r} images')
        if not (is_number(metrics['loss']) and is_number(metrics['seconds'])):
            raise UserError(f'its loss is {metrics["loss"]!r}')

    def _whole(self, arrays: ArrayRecord, server_round: int) -> ArrayRecord:
        """What a strategy made must be as finite as what it was made of."""
        try:
            moved.check({name: array.numpy().astype('float32', copy=False)
                         for name, array in arrays.items()}, self.kind.shapes)
        except UserError as error:
            raise UserError(
                f'round {server_round + self.done}: what {type(self.strategy).__name__} made of '
                f'the clients is not whole: {error}; what was done before is kept') from error
        return arrays

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy's, in the rounds that are tested."""
        self._asked = {}
        if not self.test_every or (server_round + self.done) % self.test_every:
            return []
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        self.greet(grid)
        if hasattr(self.strategy, 'personal'):
            messages = self.strategy.personal(messages)
        self._asked = self._nodes(messages)
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """As the strategy's, of those that did not fail; the scores of each are noted."""
        passed, scores, failed = [], {}, {}
        silent = dict(self._asked)
        for reply in replies:
            node = reply.metadata.src_node_id
            name = silent.pop(node, self.name(node))
            if reason := self._fault(reply, _check_test):
                failed[name] = reason
            else:
                passed.append(reply)
                scores[name] = float(reply.content['metrics']['score'])
        failed |= dict.fromkeys(silent.values(), _SILENT)
        for name, reason in sorted(failed.items()):
            log(WARNING, 'round %d: %s did not test: %s', server_round + self.done, name, reason)
        if self._asked:
            self.rounds[-1] |= dict(scores=dict(sorted(scores.items())),
                                    untested=dict(sorted(failed.items())))
        return self.strategy.aggregate_evaluate(server_round, passed) if passed else None

    def summary(self) -> None:
        """Log what it is."""
        log(INFO, '\t├──> Replies are checked: names, shapes, NaN, classes, base')
        self.strategy.summary()


def _check_test(content: RecordDict) -> None:
    """Refuse what is no score."""
    metrics = content['metrics']
    if set(metrics) != {'num-examples', 'clients', 'score'} or metrics['clients'] != 1:
        raise UserError(f'its metrics are {", ".join(sorted(metrics)) or "none"}')
    if not (is_number(metrics['score']) and is_int(metrics['num-examples'], 1)):
        raise UserError(
            f'its score is {metrics["score"]!r}, of {metrics["num-examples"]!r} images')


def _bytes(message: Message) -> int:
    """Bytes of the arrays of a message, without what packs them."""
    return sum(len(array.data) for record in message.content.array_records.values()
               for array in record.values())
