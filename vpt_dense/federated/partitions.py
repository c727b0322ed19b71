"""Which client has which training images: several ways to deal them, by a seed, as list files."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vpt_dense import safe_files
from vpt_dense.argument_checks import check_choice, check_count, check_number, is_int
from vpt_dense.errors import UserError

if TYPE_CHECKING:
    from vpt_dense.datasets.few_images import Training

#: How images are dealt.
WAYS = ('dirichlet', 'pathological', 'iid', 'name')
#: What is written beside the lists.
RECORD = 'partition.json'
#: The part of a name before its first ``_``, that which video frames of one sequence share.
PREFIX = r'^(?:.*/)?([^_/]+)_'

_TRIES = 1000


def dirichlet(
    labels: Sequence[int], clients: int, alpha: float, seed: int, least: int = 1
) -> list[list[int]]:
    """Shares of every class drawn from a Dirichlet distribution.

    The images of each class, in an order of the seed, are cut by shares p ~ Dir(alpha, ..., alpha)
    of the clients (https://arxiv.org/abs/1905.12022, section 4). All is drawn again until every
    client has ``least`` images.

    Args:
        labels: Of each image.
        clients: How many.
        alpha: Above 0; the smaller, the fewer classes a client has.
        seed: Of the draw.
        least: Images of a client.

    Returns:
        Indices of the images of each client, ascending.

    Raises:
        UserError: If a value is none of its kind, or no draw leaves every client its images.
    """
    check_count(least, '--least')
    _check_clients(clients, len(labels), least)
    check_number(alpha, '--alpha', positive=True)
    draw = np.random.default_rng(seed)
    given = np.asarray(labels)
    for _ in range(_TRIES):
        parts: list[list[int]] = [[] for _ in range(clients)]
        for label in np.unique(given):
            own = draw.permutation(np.flatnonzero(given == label))
            shares = draw.dirichlet(np.full(clients, float(alpha)))
            if not np.isclose(shares.sum(), 1):  # the sum of clients * alpha overflowed
                raise UserError(f'--alpha {alpha:g} is too large to draw by; take --by iid')
            cuts = (np.cumsum(shares)[:-1] * len(own)).round().astype(int)
            for part, some in zip(parts, np.split(own, cuts), strict=True):
                part += some.tolist()
        if min(map(len, parts)) >= least:
            return [sorted(part) for part in parts]
    raise UserError(
        f'--alpha {alpha:g}: in {_TRIES} draws a client had fewer than {least} of the '
        f'{len(labels)} images; take a larger alpha, or fewer than {clients} clients')


def pathological(
    labels: Sequence[int], clients: int, shards: int, seed: int
) -> list[list[int]]:
    """Few classes a client: images sorted by class are cut into shards, of which each has some.

    (https://arxiv.org/abs/1602.05629, section 3: 2 shards for each of 100 clients.)

    Args:
        labels: Of each image.
        clients: How many.
        shards: Of a client, all of one size, or of one image more or less.
        seed: Of the order within a class, and of who has which shards.

    Returns:
        Indices of the images of each client, ascending.

    Raises:
        UserError: If a value is none of its kind, or there are fewer images than shards.
    """
    if not is_int(shards, 1):
        raise UserError(f'--shards must be at least 1, found {shards!r}')
    _check_clients(clients, len(labels), shards)
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(labels))
    order = order[np.argsort(np.asarray(labels)[order], kind='stable')]
    pieces = np.array_split(order, clients * shards)
    dealt = draw.permutation(clients * shards).reshape(clients, shards)
    return [sorted(int(i) for piece in own for i in pieces[piece]) for own in dealt]


def iid(number: int, clients: int, seed: int) -> list[list[int]]:
    """Images dealt at random, each client as many as another, or one more or less.

    Args:
        number: Of images.
        clients: How many.
        seed: Of the draw.

    Returns:
        Indices of the images of each client, ascending.
    """
    _check_clients(clients, number, 1)
    order = np.random.default_rng(seed).permutation(number)
    return [sorted(part.tolist()) for part in np.array_split(order, clients)]


def by_name(names: Sequence[str], pattern: str = PREFIX) -> dict[str, list[int]]:
    """A client for each sequence, hospital or camera, as the names of the images tell.

    Args:
        names: Of the images, relative to their folder.
        pattern: A regular expression; its first group, searched for in a name, is the client's
            name.

    Returns:
        Name of each client, in alphabetical order -> indices of its images, ascending.

    Raises:
        UserError: If the pattern is none, or finds nothing in a name, or all have one, or what it
            finds cannot be the name of a file.
    """
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise UserError(f'--pattern {pattern!r} is no regular expression: {error}') from error
    if not found.groups:
        raise UserError(f'--pattern {pattern!r} has no group: put what names a client in (...)')
    parts: dict[str, list[int]] = {}
    said: dict[str, str] = {}
    for i, name in enumerate(names):
        match = found.search(name)
        if not (match and match[1]):
            raise UserError(
                f'--pattern {pattern!r} finds no client in {name!r}; say one that fits all names')
        client = check_name(re.sub(r'[^\w.-]', '_', match[1]), '--pattern')
        if said.setdefault(client, match[1]) != match[1]:
            raise UserError(
                f'--pattern {pattern!r} finds {said[client]!r} and {match[1]!r}, whose lists would '
                f'both be {client}.txt; say one that tells them by letters, digits, . - and _')
        parts.setdefault(client, []).append(i)
    if len(parts) < 2:
        raise UserError(
            f'--pattern {pattern!r} finds one client, {next(iter(parts))}; say one that tells '
            'several')
    return dict(sorted(parts.items()))


def check_name(name: str, key: str) -> str:
    """Return the name of a client, which files and folders have.

    Args:
        name: It.
        key: What says it, for the message.

    Raises:
        UserError: If it is more or less than letters, digits, ``.``, ``-`` and ``_``.
    """
    if not re.fullmatch(r'[\w-][\w.-]*', name):
        raise UserError(
            f'{key}: a client is named by letters, digits, . - and _, and does not begin with a '
            f'dot; found {name!r}')
    return name


def _check_clients(clients: int, images: int, least: int) -> None:
    if not is_int(clients, 2):
        raise UserError(f'--clients must be at least 2, found {clients!r}')
    if clients * least > images:
        raise UserError(
            f'--clients {clients}: {images} images are too few for {least} each; take fewer clients'
            )


def deal(training: 'Training', way: str, seed: int = 0, **settings: Any) -> dict[str, list[int]]:
    """Deal the training images of a config.

    Args:
        training: The images.
        way: One of :data:`WAYS`.
        seed: Of the draw; ``name`` draws nothing.
        **settings: What the way takes: ``clients``; ``alpha``, ``least``; ``shards``; ``pattern``.

    Returns:
        Name of each client -> indices of its images, ascending.

    Raises:
        UserError: If something does not fit.
    """
    check_choice(way, '--by', WAYS)
    if not is_int(seed, 0):
        raise UserError(f'--partition-seed must not be negative, found {seed!r}')
    if way == 'name':
        return by_name(training.names, **settings)
    if way == 'iid':
        parts = iid(len(training), seed=seed, **settings)
    elif training.dense:
        raise UserError(
            f'--by {way} deals images of one class each; images with masks are dealt by name or '
            'iid')
    elif way == 'dirichlet':
        parts = dirichlet(training.labels, seed=seed, **settings)
    else:
        parts = pathological(training.labels, seed=seed, **settings)
    return {f'client_{i}': part for i, part in enumerate(parts)}


def write(
    training: 'Training', parts: Mapping[str, Sequence[int]], folder: Path,
    told: Mapping[str, Any], holdout: float = 0.0, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Write a list of the images of each client, and :data:`RECORD`.

    Args:
        training: The images.
        parts: As :func:`deal` returns them.
        folder: It is made if it is absent.
        told: Further entries of the record: how they were dealt.
        holdout: Share of a client's images that it keeps for tests, in a list of its own.
        seed: Of the images that are held out.

    Returns:
        The clients of the record: ``name``, ``list`` (a file in ``folder``), ``images``, in
        classification ``per_class``, how many of each class; and ``test``, the list of what is
        held out.

    Raises:
        UserError: If a client would have no image left, or none to test on.
    """
    if not 0 <= check_number(holdout, '--holdout') < 1:
        raise UserError(f'--holdout must be at least 0 and below 1, found {holdout:g}')
    clients = []
    draw = np.random.default_rng(seed)
    for name, chosen in parts.items():
        file, number = f'{name}.txt', round(holdout * len(chosen))
        if holdout and not 0 < number < len(chosen):
            raise UserError(
                f'--holdout {holdout:g} of the {len(chosen)} images of {name} leaves no image to '
                'test on or to train on; deal more to each')
        client: dict[str, Any] = dict(name=name, list=file, images=len(chosen) - number)
        if number:
            order = draw.permutation(np.asarray(chosen)).tolist()
            client['test'] = f'test/{name}.txt'  # in a folder: a client may be called NAME_test
            safe_files.write_text(folder / client['test'], training.text(sorted(order[:number])))
            chosen = sorted(order[number:])
        safe_files.write_text(folder / file, training.text(chosen))
        if not training.dense:
            counts = Counter(training.labels[i] for i in chosen)
            client['per_class'] = [counts[label] for label in range(len(training.classes))]
        clients.append(client)
    record = dict(told, classes=list(training.classes), clients=clients)
    safe_files.write_text(folder / RECORD, json.dumps(record, indent=1) + '\n')
    return clients


def digest(folder: str | Path) -> str:
    """SHA-256 of a partition: of its record and of all lists, 64 hexadecimal digits."""
    files = [RECORD, *(each[key] for each in read(folder)['clients'] for key in ('list', 'test')
                       if each.get(key))]  # fmt: skip
    found = hashlib.sha256()
    for file in files:
        if not Path(folder, file).is_file():
            raise UserError(f'{Path(folder, file)}, a list of the partition, is not there')
        found.update(hashlib.sha256(Path(folder, file).read_bytes()).digest())
    return found.hexdigest()


def read(folder: str | Path) -> dict[str, Any]:
    """Read what :func:`write` wrote.

    Raises:
        UserError: If there is none, or it is something else.
    """
    file = Path(folder, RECORD)
    try:
        record = json.loads(file.read_text(encoding='utf-8'))
        ok = 'classes' in record and all(
            {'name', 'list', 'images'} <= set(each) and check_name(each['name'], str(file))
            for each in record['clients'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        ok = False
    if not ok:
        raise UserError(f'{file} is no partition; make it with vpt-dense federated')
    return record
