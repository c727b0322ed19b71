"""The server's side: Flower's ServerApp, ``vpt_dense.federated.server:app``."""

import json
import time
from logging import ERROR, INFO
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.supercore import log

from vpt_dense import safe_files
from vpt_dense.errors import UserError
from vpt_dense.federated import local, moved, partitions, strategies
from vpt_dense.federated.checked import Checked
from vpt_dense.federated.settings import HISTORY, MODEL, OURS, STEPPING, Settings

#: Settings that may be others when a run goes on.
_FREE = ('resume', 'out', 'timeout', 'test_every')
#: Of the images that clients have, among what was set.
_IMAGES = 'partition SHA-256'

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation; an error that a user can cause is one line of the log."""
    try:
        run(grid, Settings.read(context.run_config))
    except UserError as error:
        log(ERROR, 'error: %s', error)
        raise SystemExit(2) from None


def run(grid: Grid, settings: Settings) -> dict[str, Any]:
    """Run a federation.

    ``out`` gets :data:`HISTORY` and :data:`MODEL` behind every round.

    Args:
        grid: Flower's way to the clients.
        settings: Of the federation.

    Returns:
        What is in :data:`HISTORY`.

    Raises:
        UserError: If something does not fit, or no client could train in any round.
    """
    out = Path(settings.out)
    settings.check_partition()
    said = {key: value for key, value in vars(settings).items() if key not in _FREE}
    if settings.partition:
        said[_IMAGES] = partitions.digest(settings.partition)
    history = _earlier(settings, out, said)
    whole = local.Global(settings.job, settings.class_names())
    tensors, ahead = moved.take(whole.model), None
    if history is not None:
        tensors, ahead = _go_on(whole, history, out)
    kept = moved.own(settings.personal, list(whole.kind.shapes))
    shapes = {name: shape for name, shape in whole.kind.shapes.items() if name not in kept}
    start = {name: tensors[name] for name in shapes}
    if history is None:
        history = dict(
            settings=said, classes=whole.kind.classes, bases=whole.kind.bases, personal=kept,
            bytes_model=whole.bytes(), bytes_moved=moved.size(shapes), rounds=[])

    def finish(entry: dict[str, Any]) -> MetricRecord | None:
        """What follows when the model of a round is written."""
        tested = settings.test_every and entry['round'] % settings.test_every == 0
        if tested and not settings.tests_on_clients:
            entry['metrics'] = whole.test(out / MODEL, out / 'test')
        history['rounds'].append(entry)
        safe_files.write_text(out / HISTORY, json.dumps(history, indent=1) + '\n')
        return MetricRecord(entry['metrics']) if 'metrics' in entry else None

    if ahead:
        finish(ahead)
    done = len(history['rounds'])
    if done >= settings.rounds:
        log(INFO, 'all %d rounds are done already', done)
        return history
    strategy = strategies.build(
        settings,
        [name for name in moved.statistics(whole.model) if name in shapes],
        _groups(settings, whole, kept))
    checked = Checked(strategy, whole.kind._replace(shapes=shapes), done,
                      settings.test_every if settings.tests_on_clients else 0, settings.least())
    began = time.perf_counter()

    def after(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        if number == 0:
            return None
        entry = checked.rounds[-1]
        entry['seconds'] = round(time.perf_counter() - began, 1)
        merged = tensors | {name: torch.from_numpy(array.numpy().astype('float32'))
                            for name, array in arrays.items()}
        # One file has the model and what made it: killed between two files, a run would go on
        # from a model that the history does not know of, and train a round twice.
        whole.write(merged, out / MODEL, number + done, entry)
        if hasattr(strategy, 'save'):
            strategy.save(out)
        return finish(entry)

    checked.start(
        grid=grid, initial_arrays=ArrayRecord({n: Array(t.numpy()) for n, t in start.items()}),
        num_rounds=settings.rounds - done, timeout=settings.timeout,
        train_config=ConfigRecord({'kind': whole.kind.to_text(), 'done': done}),
        evaluate_config=ConfigRecord({'kind': whole.kind.to_text(), 'done': done}),
        evaluate_fn=after)
    if not any(entry['trained'] for entry in history['rounds']):
        who, why = next(iter(history['rounds'][-1]['refused'].items()), ('no client', 'none came'))
        raise UserError(f'no client trained in any of {settings.rounds} rounds; {who}: {why}')
    log(INFO, '%s, %s', out / HISTORY, out / MODEL)
    return history


def _groups(settings: Settings, whole: local.Global, kept: list[str]) -> int:
    """Groups of the model's prompt; 0: the strategy knows none."""
    if settings.strategy == 'SGPTLike':
        if any('.prompt.' in name for name in kept):
            raise UserError('personal: the prompts of SGPTLike move')
        return len(local.shared_group_prompt(whole.model).keys)
    if settings.strategy == 'PFedPGLike':
        place = 'backbone.prompt.tokens'
        if place not in whole.kind.shapes or place in kept:
            raise UserError(
                "strategy PFedPGLike generates VPT's prompts, and none move: --method deep, and a "
                'head as personal alone')
    if hasattr(getattr(getattr(whole.model, 'backbone', None), 'prompt', None), 'selects'):
        raise UserError(
            f'strategy {settings.strategy} does not train the keys of a SharedGroupPrompt; take '
            'SGPTLike')
    return 0


def _go_on(
    whole: local.Global, history: dict[str, Any], out: Path
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """What a run goes on with.

    Returns:
        What moves; and the round that its model has been through and the history lacks, if the run
        was killed between the two.

    Raises:
        UserError: If the model is not that of the history, or the base is another one.
    """
    if whole.kind.bases != history['bases']:
        raise UserError(
            f'{out}: the SHA-256 of the frozen tensors was {history["bases"]} in the run that is '
            f'there and is {whole.kind.bases} now: name the same pretrained weights '
            '(model.backbone.init_cfg.checkpoint), or another folder, out')
    tensors, rounds, last = whole.read(out / MODEL)
    if rounds not in (len(history['rounds']), len(history['rounds']) + 1):
        raise UserError(
            f'{out / MODEL} has been through {rounds} rounds, and {HISTORY} tells of '
            f'{len(history["rounds"])}: one of them is of another run; name another folder, out')
    return tensors, last if rounds > len(history['rounds']) else None


def _earlier(settings: Settings, out: Path, said: dict[str, Any]) -> dict[str, Any] | None:
    """The history of a run that goes on.

    Raises:
        UserError: If there is one and it may not; nothing of it is changed.
    """
    file = out / HISTORY
    if not file.exists():
        return None
    if not settings.resume:
        raise UserError(
            f'{out} holds a run already: resume=true goes on with it; or name another folder, out')
    try:
        history = json.loads(file.read_text(encoding='utf-8'))
        before, rounds = history['settings'], history['rounds']
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{file} is no history of a federation: {error}') from error
    odd = [key for key in said if before.get(key) != said[key]]
    if odd:
        raise UserError(
            f'{out}: {odd[0]} was {before.get(odd[0])!r} in the run that is there and is '
            f'{said[odd[0]]!r} now; set it back, or name another folder, out')
    if len(rounds) < settings.rounds and (
            settings.strategy in (*STEPPING, *OURS) or 'adaptive' in settings.privacy
            or settings.personal):
        what = 'personal tensors' if settings.personal else settings.strategy
        raise UserError(
            f'{out}: a run cannot go on, as what {what} keep between rounds is not stored; name '
            'another folder, out')
    return history
