"""Scores of many runs over one of their settings: prompts, depth, share of data, parameters."""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpt_dense.comparison import report
from vpt_dense.errors import UserError

#: What a run's record counts, and may be on the axis.
COUNTS = ('trainable', 'backbone_trainable', 'percent', 'total', 'disk_megabytes', 'train_seconds')


def read(folders: Sequence[str | Path], x: str, metric: str | None = None) -> list[dict[str, Any]]:
    """Gather the runs of comparisons.

    Args:
        folders: Work dirs of ``vpt-dense compare``.
        x: One of :data:`COUNTS`, or a key of the runs' configs
            (``model.backbone.prompt.num_tokens``; of a list its length is taken).
        metric: Of the test; None: that of the task.

    Returns:
        One point for each method and value, by method and value: ``method``, ``x``, ``mean``,
        ``std`` (None for one seed), ``seeds``, ``metric``.

    Raises:
        UserError: If there is no finished run, or none has such a key or metric.
    """
    scores = defaultdict(list)
    records = [file for folder in folders for file in sorted(Path(folder).glob('*/run.json'))]
    finished = []
    for file in records:
        record = json.loads(file.read_text(encoding='utf-8'))
        if 'metrics' in record:
            finished.append((file.parent, record))
    if not finished:
        raise UserError(f'no finished run in {", ".join(map(str, folders))}')
    name = metric or _usual(finished[0][1]['metrics'])
    for folder, record in finished:
        value = record.get(x) if x in COUNTS else _setting(folder, x)
        if value is None:
            continue
        if name not in record['metrics']:
            raise UserError(f'--metric {name}: {folder} has {", ".join(record["metrics"])}')
        scores[record['method'], value].append(record['metrics'][name])
    if not scores:
        raise UserError(
            f'--x {x}: no run has it; it is one of {", ".join(COUNTS)}, or a key of the configs')
    return [
        dict(method=method, x=value, mean=statistics.mean(found), metric=name, seeds=len(found),
             std=report.spread(found) if len(found) > 1 else None)
        for (method, value), found in sorted(scores.items())]


def _usual(metrics: dict[str, Any]) -> str:
    from vpt_dense import tasks

    return next((name for name in tasks.metrics() if name in metrics), next(iter(metrics)))


def _setting(folder: Path, key: str) -> float | None:
    """The value of a key in the config that a run has written."""
    from mmengine.config import Config

    from vpt_dense.tree import get

    for file in sorted(folder.glob('*.py')):
        value = get(Config.fromfile(file), key)
        value = len(value) if isinstance(value, (list, tuple)) else value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
    return None
