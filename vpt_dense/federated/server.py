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
from vpt_dense.federated import local, moved, strategies
from vpt_dense.federated.checked import Checked
from vpt_dense.federated.settings import OURS, STEPPING, Settings

#: What a run leaves in its folder: what happened, and the model, a checkpoint as of a run.
HISTORY, MODEL = 'history.json', 'global.pth'

#: Settings that may be others when a run goes on.
_FREE = ('resume', 'out', 'timeout', 'test_every')

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
    said = {key: value for key, value in vars(settings).items() if key not in _FREE}
    history = _earlier(settings, out, said)
    whole = local.Global(settings.job, settings.class_names())
    tensors = moved.take(whole.model) if history is None else whole.read(out / MODEL)
    kept = moved.own(settings.personal, list(whole.kind.shapes))
    shapes = {name: shape for name, shape in whole.kind.shapes.items() if name not in kept}
    start = {name: tensors[name] for name in shapes}
    if history is None:
        history = dict(
            settings=said, classes=whole.kind.classes, bases=whole.kind.bases, personal=kept,
            bytes_model=whole.bytes(), bytes_moved=moved.size(shapes), rounds=[])
    done = len(history['rounds'])
    if done >= settings.rounds:
        log(INFO, 'all %d rounds are done already', done)
        return history
    strategy = strategies.build(
        settings, bool(kept) and settings.test_every > 0,
        [name for name in moved.statistics(whole.model) if name in shapes],
        _groups(settings, whole, kept))
    checked = Checked(strategy, whole.kind._replace(shapes=shapes), done,
                      settings.test_every if kept else 0)
    began = time.perf_counter()

    def after(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        if number == 0:
            return None
        entry = checked.rounds[-1]
        entry['seconds'] = round(time.perf_counter() - began, 1)
        merged = tensors | {name: torch.from_numpy(array.numpy().astype('float32'))
                            for name, array in arrays.items()}
        file = out / MODEL
        whole.write(merged, file, number + done)
        metrics = None
        if settings.test_every and not kept and (number + done) % settings.test_every == 0:
            metrics = entry['metrics'] = whole.test(file, out / 'test')
        if hasattr(strategy, 'save'):
            strategy.save(out)
        history['rounds'] = [*history['rounds'], entry]
        safe_files.write_text(out / HISTORY, json.dumps(history, indent=1) + '\n')
        return MetricRecord(metrics) if metrics else None

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
        history = json.loads(safe_files.check(file).read_text(encoding='utf-8'))
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
