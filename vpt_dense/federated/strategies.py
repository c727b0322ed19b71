"""Flower's strategies by their names, with what a federation's settings say."""

import inspect
from typing import TYPE_CHECKING, Any

from vpt_dense.errors import UserError, suggest
from vpt_dense.federated.settings import PRIVACY, STEPPING, Settings, numbers

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

#: What the settings say by keys of their own, or the server fills in.
_TAKEN = (
    'fraction_train', 'fraction_evaluate', 'min_train_nodes', 'min_evaluate_nodes',
    'min_available_nodes', 'num_sampled_clients', 'groups', 'seed',
)  # fmt: skip


def build(settings: Settings, statistics: list[str], groups: int = 0) -> 'Strategy':
    """Build the strategy of a federation.

    Args:
        settings: Of the federation.
        statistics: Names of running statistics among what moves.
        groups: Of a :class:`vpt_dense.federated.shared_group_prompt.SharedGroupPrompt`.

    Raises:
        UserError: If an option is none of the strategy's, or it does not fit what moves.
    """
    from flwr.serverapp import strategy

    if statistics and (settings.strategy in STEPPING or settings.privacy):
        what = 'privacy adds noise' if settings.privacy else f'{settings.strategy} takes steps'
        raise UserError(
            f'{what}, by which running statistics of batch norm ({statistics[0]}) could become '
            'negative: take a head without batch norm, or FedAvg without privacy')
    tests = settings.tests_on_clients
    least = settings.least()
    sampled = max(1, int(least * settings.fraction))
    if settings.strategy == 'SGPTLike':
        from vpt_dense.federated.sgpt_like import SGPTLike as kind
    elif settings.strategy == 'PFedPGLike':
        from vpt_dense.federated.pfedpg_like import PFedPGLike as kind
    else:
        kind = getattr(strategy, settings.strategy)
    found = _make(
        kind, settings.strategy,
        numbers(settings.strategy_options, 'strategy-options'), 'strategy-options',
        fraction_train=settings.fraction, min_train_nodes=1, min_available_nodes=least,
        fraction_evaluate=1.0 if tests else 0.0, min_evaluate_nodes=1 if tests else 0,
        # Noise is made for a mean in which each client counts the same.
        **(dict(weighted_by_key='clients') if settings.privacy else {}),
        **(dict(groups=groups) if settings.strategy == 'SGPTLike' else {}),
        **(dict(seed=settings.seed) if settings.strategy == 'PFedPGLike' else {}),
        **(dict(train_loss_key='loss') if settings.strategy == 'QFedAvg' else {}))
    _check_number(found, settings.strategy, sampled)
    if settings.privacy:
        name = PRIVACY[settings.privacy]
        found = _make(
            getattr(strategy, name), name, numbers(settings.privacy_options, 'privacy-options'),
            'privacy-options', strategy=found, num_sampled_clients=sampled)
    return found


def _check_number(strategy: 'Strategy', name: str, clients: int) -> None:
    """Refuse a robust strategy where so few clients make it none.

    Krum needs 2 f + 3 clients of which f are malicious (https://arxiv.org/abs/1703.02757), Bulyan
    4 f + 3 (https://arxiv.org/abs/1802.07927); a trimmed mean leaves out int(beta n) of n at each
    end.
    """
    each = {'Krum': 2, 'MultiKrum': 2, 'Bulyan': 4}.get(name)
    if each and clients < (needed := each * strategy.num_malicious_nodes + 3):
        raise UserError(
            f'strategy-options: {name} with num_malicious_nodes={strategy.num_malicious_nodes} '
            f'needs {needed} clients, and {clients} train in a round')
    if name == 'FedTrimmedAvg' and int(strategy.beta * clients) < 1:
        raise UserError(
            f'strategy-options: FedTrimmedAvg with beta={strategy.beta:g} leaves out none of '
            f'{clients} clients at each end; set beta to at least {1 / clients:.2g}')


def _make(kind: type, name: str, options: dict[str, Any], key: str, **given: Any) -> Any:
    known = [each.name for each in list(inspect.signature(kind).parameters.values())
             if each.name not in _TAKEN and each.annotation in (float, int, float | None)]
    for option in options:
        if option not in known:
            raise UserError(
                f'{key}: {option} is no number of {name}{suggest(option, known)}; it takes '
                f'{", ".join(known) or "none"}')
    try:
        return kind(**given, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f'{key} of {name}: {error}') from error
