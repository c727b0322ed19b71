"""Which task's prompts help which: a matrix of starts, similarities, and task vectors."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_dense import config_files, safe_files
from vpt_dense.analysis import figures
from vpt_dense.argument_checks import check_number, is_int, is_list
from vpt_dense.errors import UserError, suggest

#: The parameter of :class:`vpt_dense.prompts.TokenPrompt`.
TOKENS = 'backbone.prompt.tokens'
#: The start at random, and what is made of the vectors of all other tasks.
RANDOM, ADD, AVERAGE = 'random', 'add', 'average'
#: How similar prompts are -> what it is called.
SIMILARITIES = {
    'mean_prompts': 'cosine of mean prompts', 'tokens': 'mean cosine of tokens',
    'vectors': 'cosine of task vectors'}
_KEYS = ('tasks', 'method', 'options', 'seeds', 'share')


class Plan(NamedTuple):
    """What is trained.

    Attributes:
        tasks: Name -> (recipe, overrides).
        method: What puts a ``TokenPrompt`` on the recipes.
        options: Overrides of all runs.
        seeds: Of the runs.
        share: Of a target's training images, 0 to 1.
    """

    tasks: Mapping[str, tuple[str, tuple[str, ...]]]
    method: str
    options: tuple[str, ...]
    seeds: tuple[int, ...]
    share: float


def read(path: str) -> Plan:
    """Read the file of a study.

    ::

        tasks = dict(
            camvid=dict(recipe='configs/results/camvid_dinov2-s.py', options=['iters=40']),
            nuclei=dict(recipe='configs/results/nuclei_dinov2-s.py'))
        method = 'deep'              # the default
        options = ['batch_size=2']   # of all tasks, none by default
        seeds = [0]                  # the default
        share = 0.1                  # of a target's images, the default

    Args:
        path: The file.

    Raises:
        UserError: Names the key, what was found there, and the way out.
    """
    said = {key: value for key, value in config_files.parse(path).to_dict().items()
            if not key.startswith('_')}  # fmt: skip
    for key in said:
        if key not in _KEYS:
            raise UserError(f'{path}: nothing reads {key!r}{suggest(key, _KEYS)}')
    tasks = said.get('tasks')
    if not isinstance(tasks, dict) or len(tasks) < 2:
        raise UserError(f'{path}: tasks must be a dict of two tasks or more')
    found = {}
    for name, task in tasks.items():
        if name in (RANDOM, ADD, AVERAGE) or not name.replace('-', '_').isidentifier():
            raise UserError(f'{path}: tasks.{name}: take another name, of letters, digits, _ and -')
        if not isinstance(task, dict) or not task.get('recipe') or set(task) - {
                'recipe', 'options'}:
            raise UserError(f'{path}: tasks.{name} must be a dict of recipe and options, found '
                            f'{task!r}')
        found[name] = task['recipe'], _texts(path, f'tasks.{name}.options', task.get('options'))
    seeds = said.get('seeds', [0])
    if not is_list(seeds) or not seeds or not all(is_int(seed, 0) for seed in seeds):
        raise UserError(f'{path}: seeds must be a list of whole numbers, found {seeds!r}')
    share = check_number(said.get('share', 0.1), f'{path}: share', positive=True)
    if share > 1:
        raise UserError(f'{path}: share must be at most 1, found {share}')
    return Plan(found, said.get('method', 'deep'), _texts(path, 'options', said.get('options')),
                tuple(seeds), share)


def _texts(path: str, key: str, value: Any) -> tuple[str, ...]:
    if value is not None and not (
            is_list(value) and all(isinstance(each, str) and '=' in each for each in value)):
        raise UserError(f"{path}: {key} must be a list of overrides, as 'iters=40', found "
                        f'{value!r}')
    return tuple(value or ())


# --- runs --------------------------------------------------------------------------------------


def run(plan: Plan, folder: Path, say: Callable[[str], object]) -> None:
    """Train every source, then every target from every start; what is finished is not repeated.

    All runs of a seed start from the same prompts at random, ``start/SEED.safetensors``, but for
    those from a source: with the vectors v_s = P_s - P_0 of the other tasks (task arithmetic, G.
    Ilharco et al., ICLR 2023, https://arxiv.org/abs/2212.04089), 'add' starts from P_0 + sum v_s,
    'average' from P_0 + mean v_s. A head is new in every run, and the same in those of a target.

    Args:
        plan: What is trained.
        folder: Gets a folder for each run.
        say: Told of each run.

    Raises:
        UserError: If a run of ``folder`` was of another plan, or one fails.
    """
    for seed in plan.seeds:
        begin = folder / f'start/{seed}.safetensors'
        for name in plan.tasks:
            _train(plan, name, seed, folder / f'sources/{name}/{seed}', begin, 1.0, say)
        first = read_tokens(begin)
        vectors = {name: read_tokens(_prompt(folder, name, seed)) - first for name in plan.tasks}
        for name in plan.tasks:
            others = [vector for other, vector in vectors.items() if other != name]
            starts = {RANDOM: begin, **{other: _prompt(folder, other, seed)
                                        for other in plan.tasks if other != name}}
            for kind, vector in ((ADD, sum(others)), (AVERAGE, sum(others) / len(others))):
                starts[kind] = folder / f'start/{kind}-{name}-{seed}.safetensors'
                safe_files.write_tensors({TOKENS: first + vector}, starts[kind], {})
            for start, file in starts.items():
                _train(plan, name, seed, folder / f'targets/{name}/{start}/{seed}', file,
                       plan.share, say)


def _prompt(folder: Path, name: str, seed: int) -> Path:
    return folder / f'sources/{name}/{seed}/prompt.safetensors'


def read_tokens(path: Path) -> Tensor:
    """The prompts (layers, tokens, width) of a file."""
    return safe_files.read(path)['state_dict'][TOKENS].float()


def _train(
    plan: Plan, name: str, seed: int, folder: Path, start: Path, share: float,
    say: Callable[[str], object],
) -> None:  # fmt: skip
    """One run: ``score.json`` and ``prompt.safetensors`` in its folder."""
    from vpt_dense import config, run_setup, tasks
    from vpt_dense.params import unwrap

    recipe, own = plan.tasks[name]
    mark = dict(recipe=recipe, method=plan.method, options=[*plan.options, *own], share=share,
                seed=seed, start=str(start.name if start.parent.name == 'start'
                                     else start.parent.parent.name))
    record = folder / 'score.json'
    if record.is_file():
        if json.loads(record.read_text(encoding='utf-8'))['run'] != mark:
            raise UserError(f'{record} is of a run with other settings; take another --out')
        return
    options = [*plan.options, *own, f'work_dir={folder}', f'randomness.seed={seed}',
               *([f'subset.share={share}'] if share < 1 else [])]
    cfg = config.load(recipe, options, plan.method)
    task = tasks.need(cfg.model, 'a matrix of transfer')
    first = not start.is_file()
    hooks = [] if first else [dict(type='vpt_dense.PromptFileHook', path=str(start))]
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), *hooks]
    cfg.experiment_name = '-'.join(folder.parts[-4:])
    runner = run_setup.start(cfg, 'train', None)
    if first:  # the first run of a seed says what random is, for all of them
        runner.register_hook(_keeper(start), priority='LOW')
    model = runner.train()
    found = json.loads((folder / 'summary.json').read_text(encoding='utf-8'))['last']['metrics']
    if task.metric not in found:
        raise UserError(f'{name}: its validation has no {task.metric}, but {", ".join(found)}')
    tokens = _tokens_of(unwrap(model))
    safe_files.write_tensors({TOKENS: tokens}, folder / 'prompt.safetensors', {})
    safe_files.write_text(record, json.dumps(dict(
        run=mark, metric=task.metric, less_is_better=task.less_is_better,
        score=found[task.metric]), indent=1))
    say(f'{"/".join(folder.parts[-4:])}: {task.metric} {found[task.metric]:.2f}')


def _tokens_of(model: torch.nn.Module) -> Tensor:
    tokens = getattr(getattr(model.backbone, 'prompt', None), 'tokens', None)
    if not isinstance(tokens, Tensor):
        raise UserError('a matrix of transfer compares the tokens of a TokenPrompt; take '
                        "method = 'deep' or 'shallow'")
    return tokens.detach()


def _keeper(start: Path) -> Any:
    from mmengine.hooks import Hook

    from vpt_dense.params import unwrap

    class Keeper(Hook):
        def before_train(self, runner: Any) -> None:
            start.parent.mkdir(parents=True, exist_ok=True)
            safe_files.write_tensors({TOKENS: _tokens_of(unwrap(runner.model))}, start, {})

    return Keeper()


# --- what comes of it --------------------------------------------------------------------------


def similarity(one: Tensor, other: Tensor, first: Tensor, kind: str) -> float:
    """How similar two tasks' prompts are, -1 to 1: the mean over layers.

    SPoT (T. Vu et al., ACL 2022, https://arxiv.org/abs/2110.07904, section 3.1) has the first two.

    Args:
        one: Prompts (layers, tokens, width).
        other: Likewise.
        first: What both started from.
        kind: ``mean_prompts``, the cosine of the means over tokens; ``tokens``, the mean of the
            cosines of all pairs of tokens; or ``vectors``, the cosine of what training has added.
    """
    if kind == 'mean_prompts':
        found = F.cosine_similarity(one.mean(1), other.mean(1), dim=-1)
    elif kind == 'tokens':
        found = (F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).mT).mean((1, 2))
    else:
        found = F.cosine_similarity((one - first).flatten(1), (other - first).flatten(1), dim=-1)
    return float(found.mean())


def gather(plan: Plan, folder: Path) -> dict[str, Any]:
    """All that the runs of a folder tell.

    Returns:
        ``tasks``, ``seeds``, ``share``, ``metrics`` (task -> name), ``rows`` (target, start, seed,
        score, ``gain`` over the start at random, above 0 where it is better), ``sources`` (task ->
        seed -> score on all images), ``gains`` (target -> start -> mean over seeds), ``similarity``
        (kind -> task -> task -> mean over seeds) and ``prediction`` (kind -> ``spearman``,
        ``p_value`` and ``pairs`` of similarity and gain over all pairs of a source and a target;
        ``within``, the mean over targets of their own rank correlations).

    Raises:
        UserError: If a run is missing.
    """
    names, rows, metrics = list(plan.tasks), [], {}
    starts = {name: [RANDOM, *(other for other in names if other != name), ADD, AVERAGE]
              for name in names}  # fmt: skip
    sources = {name: {} for name in names}
    for name in names:
        for seed in plan.seeds:
            sources[name][str(seed)] = _score(folder / f'sources/{name}/{seed}')['score']
            begin = None
            for start in starts[name]:
                found = _score(folder / f'targets/{name}/{start}/{seed}')
                metrics[name] = found['metric']
                begin = found['score'] if begin is None else begin
                gain = (found['score'] - begin) * (-1 if found['less_is_better'] else 1)
                rows.append(dict(target=name, start=start, seed=seed, score=found['score'],
                                 gain=gain))
    gains = {name: {start: statistics.mean(
        row['gain'] for row in rows if (row['target'], row['start']) == (name, start))
        for start in starts[name] if start != RANDOM} for name in names}
    prompts = {seed: {name: read_tokens(_prompt(folder, name, seed)) for name in names}
               for seed in plan.seeds}  # fmt: skip
    first = {seed: read_tokens(folder / f'start/{seed}.safetensors') for seed in plan.seeds}
    similar = {kind: {one: {other: statistics.mean(
        similarity(prompts[seed][one], prompts[seed][other], first[seed], kind)
        for seed in plan.seeds) for other in names} for one in names} for kind in SIMILARITIES}
    return dict(
        tasks=names, seeds=list(plan.seeds), share=plan.share, metrics=metrics, rows=rows,
        sources=sources, gains=gains, similarity=similar,
        prediction={kind: predict(similar[kind], gains) for kind in SIMILARITIES})


def _score(folder: Path) -> dict[str, Any]:
    file = folder / 'score.json'
    if not file.is_file():
        raise UserError(f'{file} is missing: the run is not finished; call it again without '
                        '--table')
    return json.loads(file.read_text(encoding='utf-8'))


def predict(
    similar: Mapping[str, Mapping[str, float]], gains: Mapping[str, Mapping[str, float]]
) -> dict[str, float | int | None]:
    """Whether the similarity of prompts tells what a source gains.

    Args:
        similar: Task -> task -> how similar their prompts are.
        gains: Target -> source -> gain; further starts are left out.

    Returns:
        Spearman's rank correlation over all pairs, ``spearman``, its ``p_value`` (as if pairs were
        independent, which those that share a task are not), ``pairs``; and ``within``. None where
        a correlation has no value.
    """
    from scipy import stats

    def rank(values: Sequence[tuple[float, float]]) -> tuple[float | None, float | None]:
        one, other = zip(*values, strict=True)
        if len(values) < 3 or len(set(one)) < 2 or len(set(other)) < 2:
            return None, None
        found = stats.spearmanr(one, other)
        return float(found.statistic), float(found.pvalue)

    of_targets = {
        target: [(similar[source][target], gain) for source, gain in own.items()
                 if source in similar] for target, own in gains.items()}
    pairs = [pair for own in of_targets.values() for pair in own]
    spearman, p_value = rank(pairs)
    within = [found for own in of_targets.values() if (found := rank(own)[0]) is not None]
    return dict(spearman=spearman, p_value=p_value, pairs=len(pairs),
                within=statistics.mean(within) if within else None)


def write(plan: Plan, folder: Path) -> list[Path]:
    """Write ``transfer.json``, ``transfer.csv``, and heat maps of gains and similarities.

    Returns:
        The files.
    """
    found = gather(plan, folder)
    folder.mkdir(parents=True, exist_ok=True)
    record, table = folder / 'transfer.json', folder / 'transfer.csv'
    safe_files.write_text(record, json.dumps(found, indent=1) + '\n')
    lines = ['target,start,seed,metric,score,gain']
    lines += [f'{row["target"]},{row["start"]},{row["seed"]},{found["metrics"][row["target"]]},'
              f'{row["score"]:.4f},{row["gain"]:.4f}' for row in found['rows']]
    safe_files.write_text(table, '\n'.join(lines) + '\n')
    names = found['tasks']
    starts = [*names, ADD, AVERAGE]
    gains = np.array([[found['gains'][target].get(start, np.nan) for start in starts]
                      for target in names])
    written = [record, table]
    for suffix in ('svg', 'png'):
        written.append(draw(folder / f'gains.{suffix}', gains, names, starts, 'target',
                            'gain over a start at random', 1))
        for kind, label in SIMILARITIES.items():
            matrix = np.array([[found['similarity'][kind][one][other] for other in names]
                               for one in names])
            written.append(draw(
                folder / f'{kind}.{suffix}', matrix, names, names, 'task', label, 2))
    return written


def draw(
    out: Path, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], axis: str,
    label: str, digits: int,
) -> Path:  # fmt: skip
    """A heat map with its numbers; what is NaN stays empty, and 0 has the middle colour."""
    top = max(float(np.nanmax(np.abs(matrix))), 1e-9)

    def paint(figure: Any) -> None:
        place = figure.subplots()
        shown = place.imshow(matrix, cmap='RdBu', vmin=-top, vmax=top)
        place.set_xticks(range(len(columns)), columns, rotation=45, ha='right')
        place.set_yticks(range(len(rows)), rows)
        place.set(ylabel=axis, xlabel='start' if axis == 'target' else axis)
        for (i, j), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                place.text(j, i, f'{value:.{digits}f}', ha='center', va='center', fontsize='small',
                           color='white' if abs(value) > 0.6 * top else 'black')
        figure.colorbar(shown, shrink=0.8, label=label)

    return figures.save(out, paint, 2.5 + 0.75 * len(columns), 1.8 + 0.55 * len(rows))
