"""The settings of a federation: what stands in the app's pyproject.toml, checked."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpt_dense.argument_checks import check_choice, is_int, is_number
from vpt_dense.errors import UserError, suggest
from vpt_dense.federated import partitions
from vpt_dense.federated.local import Job

#: Ways of privacy -> Flower's wrapper of a strategy.
PRIVACY = {
    'server-fixed': 'DifferentialPrivacyServerSideFixedClipping',
    'server-adaptive': 'DifferentialPrivacyServerSideAdaptiveClipping',
    'client-fixed': 'DifferentialPrivacyClientSideFixedClipping',
    'client-adaptive': 'DifferentialPrivacyClientSideAdaptiveClipping',
}

#: What a run leaves in its folder: what happened, and the model, a checkpoint as of a run.
HISTORY, MODEL = 'history.json', 'global.pth'

#: Strategies, by Flower's names, and ours.
STRATEGIES = (
    'FedAvg', 'FedProx', 'FedAvgM', 'FedAdam', 'FedAdagrad', 'FedYogi', 'FedMedian',
    'FedTrimmedAvg', 'Krum', 'MultiKrum', 'Bulyan', 'QFedAvg', 'SGPTLike',
    'PFedPGLike',
)  # fmt: skip
#: Ours among them, which keep something between rounds.
OURS = ('SGPTLike', 'PFedPGLike')
#: Numbers without which a strategy is FedAvg by another name.
NEEDED = {'FedProx': 'proximal_mu', 'FedAvgM': 'server_momentum'}
#: Those whose result is a mean of what clients send, for which noise is made.
MEANS = ('FedAvg', 'FedProx')
#: What a node may say of itself; Flower says the first two in a simulation.
_OF_NODES = ('partition-id', 'num-partitions', 'name', 'options', 'list', 'test')
#: Those that take steps along the mean change, as an optimizer does.
STEPPING = ('FedAvgM', 'FedAdam', 'FedAdagrad', 'FedYogi', 'QFedAvg')


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is said under ``[tool.flwr.app.config]``; names there have ``-`` in place of ``_``.

    Attributes:
        config: A config or a recipe, whole path or ``PACKAGE::NAME``.
        method: Put on the recipe; empty: the config says what trains.
        options: Overrides, ``KEY=VALUE`` as on a command line.
        partition: Folder that :func:`vpt_dense.federated.partitions.write` made; empty: every
            client has data of its own, which the options of its node name, and ``classes`` names
            the classes.
        classes: Names of the classes with commas between; empty: those of the partition.
        rounds: That the config's length is cut into.
        seed: Of the start, and of what clients draw.
        out: Folder of the results.
        strategy: One of :data:`STRATEGIES`.
        strategy_options: ``KEY=NUMBER`` of Flower's class.
        fraction: Of the clients that train in a round.
        min_clients: That must be connected before a round begins; 0: all of the partition, or 2.
        timeout: Seconds that a round waits for its clients.
        test_every: Rounds between tests of the server's model on the test images of the config; 0:
            never, so that the server needs no images.
        privacy: One of :data:`PRIVACY`; empty: none.
        privacy_options: ``KEY=NUMBER`` of Flower's class.
        personal: Tensors that stay with their client, a regular expression; empty: none. Every
            client then tests on the images that it held out, each ``test_every`` rounds, and the
            server does not.
        resume: Whether a run in ``out`` goes on.
    """

    config: str
    method: str = ''
    options: str = ''
    partition: str = ''
    classes: str = ''
    rounds: int = 10
    seed: int = 0
    out: str = 'work_dirs/federated'
    strategy: str = 'FedAvg'
    strategy_options: str = ''
    fraction: float = 1.0
    min_clients: int = 0
    timeout: float = 3600.0
    test_every: int = 0
    privacy: str = ''
    privacy_options: str = ''
    personal: str = ''
    resume: bool = False

    @classmethod
    def read(cls, run_config: Mapping[str, Any]) -> 'Settings':
        """Read what Flower hands over.

        Raises:
            UserError: If a key is unknown, or a value is none of its kind; the message names it.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        given: dict[str, Any] = {}
        for key, value in run_config.items():
            name = key.replace('-', '_')
            if name not in fields:
                known = [name.replace('_', '-') for name in fields]
                raise UserError(
                    f'{key} is no setting of a federation{suggest(key, known)}; there are '
                    f'{", ".join(known)}')
            kind = fields[name].type
            if kind is float and is_int(value):
                value = float(value)
            if type(value) is not kind:
                raise UserError(f'{key} must be a {kind.__name__}, found {value!r}')
            given[name] = value
        if not given.get('config'):
            raise UserError('config: say which config is trained')
        settings = cls(**given)
        settings.check()
        return settings

    def check(self) -> None:
        """Refuse values that cannot be.

        Raises:
            UserError: The message names the key.
        """
        if self.rounds < 1:
            raise UserError(f'rounds must be at least 1, found {self.rounds}')
        for key in ('seed', 'min_clients', 'test_every'):
            if getattr(self, key) < 0:
                raise UserError(
                    f'{key.replace("_", "-")} must not be negative, found {getattr(self, key)}')
        if not 0 < self.fraction <= 1:
            raise UserError(f'fraction must be above 0 and at most 1, found {self.fraction}')
        if not self.timeout > 0:
            raise UserError(f'timeout must be above 0 seconds, found {self.timeout}')
        check_choice(self.strategy, 'strategy', STRATEGIES)
        if self.privacy:
            check_choice(self.privacy, 'privacy', PRIVACY)
            if self.strategy not in MEANS:
                raise UserError(
                    f'privacy: its noise is made for a mean, and {self.strategy} makes something '
                    f'else of the clients; take strategy {" or ".join(MEANS)}')
        elif self.privacy_options:
            raise UserError('privacy-options do nothing without privacy')
        for key in ('strategy_options', 'privacy_options'):
            numbers(getattr(self, key), key.replace('_', '-'))
        needed = NEEDED.get(self.strategy)
        if needed and needed not in numbers(self.strategy_options, 'strategy-options'):
            raise UserError(
                f"strategy-options: {self.strategy} without {needed} is FedAvg; say '{needed}=0.1' "
                'or another number')
        if self.partition and self.classes:
            raise UserError('classes: the partition names them; leave one of both out')
        if not self.partition and not self.classes:
            raise UserError(
                'partition: name a folder that vpt-dense federated made; or, where every client '
                'has data of its own, the classes')

    def check_partition(self) -> None:
        """Refuse values that do not fit the partition, if there is one.

        Raises:
            UserError: The message names the key.
        """
        if not self.partition:
            return
        known = partitions.read(self.partition)['clients']
        if self.min_clients > len(known):
            raise UserError(
                f'min-clients={self.min_clients}: {self.partition} has {len(known)} clients, so no '
                'round would begin')
        if self.tests_on_clients and not all(each.get('test') for each in known):
            raise UserError(
                f'test-every: clients test on what they hold out, and those of {self.partition} '
                'hold out nothing; make it with --holdout 0.2, or set test-every to 0')

    @property
    def tests_on_clients(self) -> bool:
        """Whether what is tested is of each client, so that clients test it, not the server."""
        return self.test_every > 0 and bool(self.personal or self.strategy == 'PFedPGLike')

    @property
    def job(self) -> Job:
        """What is trained."""
        return Job(self.config, self.method, tuple(shlex.split(self.options)), self.rounds,
                   self.seed)

    def class_names(self) -> list[str]:
        """Names of the classes, in their order."""
        if self.classes:
            return [name.strip() for name in self.classes.split(',')]
        return list(partitions.read(self.partition)['classes'])

    def clients(self) -> int:
        """Clients of the partition; 0: it is not known how many there are."""
        return len(partitions.read(self.partition)['clients']) if self.partition else 0

    def least(self) -> int:
        """Clients that must be connected before a round begins."""
        return self.min_clients or self.clients() or 2

    def client(self, node: Mapping[str, Any]) -> 'Client':
        """Which client a node is.

        Args:
            node: Flower's ``node_config``: ``partition-id`` of a simulation; of a node of its own
                ``name``, ``options``, ``list`` and ``test``.

        Raises:
            UserError: If it says nothing of it, or something that does nothing.
        """
        for key in node:
            if key not in _OF_NODES:
                raise UserError(
                    f'--node-config: {key} does nothing{suggest(key, _OF_NODES)}; there are '
                    f'{", ".join(_OF_NODES[2:])}')
            if self.partition and key in ('list', 'test'):
                raise UserError(
                    f'--node-config: {key} does nothing, as {self.partition} says which images a '
                    "client has; leave it out, or let there be no partition (partition='')")
        options = tuple(shlex.split(str(node.get('options', ''))))
        if self.partition:
            folder, known = Path(self.partition), partitions.read(self.partition)['clients']
            by_name = {each['name']: each for each in known}
            if 'name' in node:
                if node['name'] not in by_name:
                    raise UserError(
                        f"name={node['name']!r} is no client of {folder}: {', '.join(by_name)}")
                found = by_name[node['name']]
            elif 'partition-id' in node and 0 <= int(node['partition-id']) < len(known):
                found = known[int(node['partition-id'])]
            else:
                raise UserError(
                    f'this node is none of the {len(known)} clients of {folder}: let there be as '
                    'many (--federation-config num-supernodes), or give it a name (--node-config)')
            test = folder / found['test'] if found.get('test') else None
            return Client(found['name'], folder / found['list'], options, test)
        if 'name' not in node:
            raise UserError(
                "this node has no name: start it with --node-config \"name='a' "
                "options='dataset.data_root=...'\"")
        lists = [Path(str(node[key])) if node.get(key) else None for key in ('list', 'test')]
        name = partitions.check_name(str(node['name']), '--node-config name')
        return Client(name, lists[0], options, lists[1])


@dataclasses.dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        name: Told where something is refused.
        list: Of its images; None: all of its config.
        options: Overrides of its own, ``KEY=VALUE``.
        test: List of the images that it held out; None: it did not.
    """

    name: str
    list: Path | None
    options: tuple[str, ...] = ()
    test: Path | None = None


def numbers(text: str, key: str) -> dict[str, float | int]:
    """Read ``KEY=NUMBER KEY=NUMBER``.

    Args:
        text: It.
        key: For messages.

    Raises:
        UserError: If it is something else.
    """
    found: dict[str, float | int] = {}
    for word in text.split():
        name, _, value = word.partition('=')
        try:
            number = int(value) if value.lstrip('-').isdigit() else float(value)
        except ValueError:
            number = None
        if not name or number is None or not is_number(number) or name in found:
            raise UserError(
                f"{key}: 'KEY=NUMBER KEY=NUMBER' was expected, each key once, found {word!r}")
        found[name] = number
    return found
