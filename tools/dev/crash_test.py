"""Kill training runs at random moments and look at what is left: ``crash_test.py --kills 200``.

Real runs of a tiny classifier save a checkpoint and validate in every iteration; some of them keep
the best one too. Each is killed with SIGKILL at a random moment, resumed, killed again, and in the
end finished. After every kill each file under a final name must load, and the next run must go on
from the last save that was complete. ``--stock`` does the same with mmengine's own saving: a test
of this test.
"""

import gc
import mmap
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

# Before torch is imported: processes are forked, which threads do not survive.
os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1')

import matplotlib.pyplot  # noqa: F401  like the next: imported once, here, and not in every run
import mmengine.runner.runner as mmengine_runner
import mmpretrain.models  # noqa: F401
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import find_latest_checkpoint
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset

from vpt_dense import errors, safe_files
from vpt_dense.engine.runner import Runner
from vpt_dense.weights import checkpoints

#: Seconds to wait for a process before it counts as hanging.
PATIENCE = 120
#: Kills of a run before it is let finish and another is begun.
KILLS_PER_RUN = 5

# What a run tells its parent, in shared memory: it is there whenever the run is killed.
START, SAVED, PHASE = range(3)
#: What a run does that can be interrupted.
PHASES = ('training', 'writing', 'pointer and pruning')


class Setting(NamedTuple):
    """A kind of run."""

    processes: int
    max_keep_ckpts: int
    save_best: bool


SETTINGS = [Setting(n, keep, best) for keep in (1, 2, -1) for best in (True, False) for n in (1, 2)]


# --- a run -----------------------------------------------------------------------------------


class Stock(Runner):
    """Our runner, but saving and resuming as mmengine does."""

    register_hook = mmengine_runner.Runner.register_hook
    save_checkpoint = mmengine_runner.Runner.save_checkpoint

    def load_or_resume(self) -> None:
        """Go on from what the pointer names, if there is one."""
        if self._resume:
            self._load_from = find_latest_checkpoint(self.work_dir)
        mmengine_runner.Runner.load_or_resume(self)


class Images(Dataset):
    """Random images, the same ones every time."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        image = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(index))
        return dict(inputs=image, data_samples=DataSample().set_gt_label(index % 3))


def score(iteration: int) -> float:
    """A made-up score that grows unsteadily: about every other one is the best so far."""
    return iteration + random.Random(iteration).uniform(0, 4)


class Score(BaseMetric):
    """The score of the iteration."""

    runner: Runner

    def process(self, data_batch: dict, data_samples: list) -> None:
        """Count the samples."""
        self.results.append(len(data_samples))

    def compute_metrics(self, results: list) -> dict:
        """Return the score of the last iteration, counted from 1."""
        return dict(score=score(self.runner.iter))


class Tell(Hook):
    """Tells the parent where the run is."""

    priority = 'LOWEST'  # after the checkpoint hook

    def __init__(self, told: np.ndarray) -> None:
        self.told = told

    def before_train(self, runner: Runner) -> None:
        """Tell where the run begins."""
        self.told[START] = runner.iter + 1

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Tell that an iteration is saved."""
        self.told[SAVED] = runner.iter + 1


def build(folder: Path, setting: Setting, megabytes: float, stock: bool, **options) -> Runner:
    """The runner of a tiny classifier, with a checkpoint of a given size."""
    DefaultScope.get_instance('crash_test', scope_name='mmpretrain')
    model = MODELS.build(dict(
        type='ImageClassifier',
        data_preprocessor=dict(type='ClsDataPreprocessor'),
        backbone=dict(
            type='vpt_dense.VisionTransformer', img_size=16, patch_size=8,
            arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16),
            out_type='cls_token', trainable=['prompt'],
            prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=2),
        ),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=16),
    ))  # fmt: skip
    model.register_buffer('ballast', torch.randn(int(megabytes * 250_000)))
    checkpoint = dict(
        type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=setting.max_keep_ckpts
    )
    if setting.save_best:
        checkpoint.update(save_best='score', rule='greater')
    loader = dict(
        batch_size=2, num_workers=0, dataset=Images(), collate_fn=dict(type='pseudo_collate')
    )
    metric = Score()
    metric.runner = (Stock if stock else Runner)(
        model=model,
        work_dir=str(folder),
        train_dataloader={**loader, 'sampler': dict(type='InfiniteSampler', shuffle=True)},
        val_dataloader={**loader, 'sampler': dict(type='DefaultSampler', shuffle=False)},
        val_cfg=dict(),
        val_evaluator=[metric],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        param_scheduler=[dict(type='PolyLR', by_epoch=False, end=10_000)],
        default_hooks=dict(
            checkpoint=checkpoint, sampler_seed=None, logger=dict(type='LoggerHook', interval=100)
        ),
        default_scope='mmpretrain',
        experiment_name='crash_test',
        log_level='WARNING',
        randomness=dict(seed=0),
        **options,
    )
    return metric.runner


def run(rank: int, port: int, told: np.ndarray, last: int, setting: Setting, **kwargs) -> None:
    """Train, in a process of its own, up to iteration ``last``; does not return."""
    code = 1
    try:
        output = kwargs['folder'] / f'output_{rank}.txt'
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if setting.processes > 1:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(setting.processes),
                MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
            )  # fmt: skip
            kwargs['launcher'] = 'pytorch'
        train_cfg = dict(by_epoch=False, max_iters=last, val_interval=1)
        runner = build(setting=setting, train_cfg=train_cfg, **kwargs)
        if rank == 0:
            runner.register_hook(Tell(told))
            tell_phases(runner, told)
        runner.train()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def tell_phases(runner: Runner, told: np.ndarray) -> None:
    """Note when a checkpoint is being written, and when its hook does the rest."""
    save = runner.save_checkpoint

    def save_checkpoint(*args, **kwargs) -> None:
        told[PHASE] = 1
        save(*args, **kwargs)
        told[PHASE] = 2

    runner.save_checkpoint = save_checkpoint
    for hook in runner.hooks:
        if isinstance(hook, mmengine_runner.HOOKS.get('CheckpointHook')):
            for name in ('after_train_iter', 'after_val_epoch'):
                setattr(hook, name, and_then(getattr(hook, name), told))


def and_then(method, told: np.ndarray):
    def wrapped(*args, **kwargs) -> None:
        method(*args, **kwargs)
        told[PHASE] = 0

    return wrapped


# --- killing it ------------------------------------------------------------------------------


class Failed(Exception):
    """Something was lost."""


def start(told: np.ndarray, setting: Setting, **kwargs) -> list[int]:
    """Fork the processes of a run and return their ids."""
    told[:] = 0
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(setting.processes):
        process = os.fork()
        if process == 0:
            run(rank, port, told, setting=setting, **kwargs)
        processes.append(process)
    return processes


def ended(processes: list[int]) -> list[int]:
    """Exit codes of those processes that have ended; a process is asked about once only."""
    codes = []
    for process in list(processes):
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            processes.remove(process)
            codes.append(os.waitstatus_to_exitcode(status))
    return codes


def kill(processes: list[int], chance: random.Random) -> None:
    """Kill the processes, in any order and not quite at once."""
    chance.shuffle(processes)
    for index, process in enumerate(processes):
        if index:
            time.sleep(chance.choice([0, 0, chance.uniform(0, 0.02)]))
        os.kill(process, signal.SIGKILL)
    for process in processes:
        os.waitpid(process, 0)


def output(folder: Path) -> str:
    return ' | '.join(
        file.read_text(errors='replace').strip().splitlines()[-1:][0]
        for file in sorted(folder.glob('output_*.txt'))
        if file.stat().st_size
    )


def kill_once(chance: random.Random, told: np.ndarray, window: float, **kwargs) -> int:
    """Start a run, kill it, and return what it was doing: an index of :data:`PHASES`."""
    processes = start(told, **kwargs)
    if chance.random() < 0.1:  # while it is built, or reads the checkpoint
        time.sleep(chance.uniform(0, 1))
    else:
        wait_for(lambda: told[START] or ended(processes), processes, 'did not begin to train')
        time.sleep(chance.uniform(0, window))
    alone = len(processes) == kwargs['setting'].processes and not ended(processes)
    kill(processes, chance)
    if not alone:
        raise Failed(f'a process ended by itself: {output(kwargs["folder"])}')
    return int(told[PHASE])


def wait_for(condition, processes: list[int], failure: str) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > limit:
            kill(processes, random.Random(0))
            raise Failed(failure)
        time.sleep(0.002)


def step(path: str | Path) -> int:
    return int(Path(path).stem.rpartition('_')[2])


def inspect(folder: Path, saved: int, stock: bool) -> str | None:
    """Look at all files; return the checkpoint that the next run will go on from.

    Args:
        folder: That of the run.
        saved: The iteration of the last save that was complete.
        stock: Whether mmengine's way of finding it counts.
    """
    found = sorted(folder.glob('*.pth'))
    for file in found:
        try:
            safe_files.read(file)
        except errors.UserError as error:
            raise Failed(str(error)) from error
    pointer = folder / 'last_checkpoint'
    named = pointer.read_text() if pointer.exists() else None
    if named is not None and not Path(named).is_file():
        raise Failed(f'last_checkpoint names {named!r}')
    if not found and not saved:
        return None
    if not stock:
        named = checkpoints.find_last(folder, warn=lambda line: None)
    if named is None or step(named) < saved:
        raise Failed(f'the run would go on from {named}, but iteration {saved} was saved')
    return named


def finish(folder: Path, setting: Setting, stock: bool, told: np.ndarray, **kwargs) -> None:
    """Let a run go on for three iterations and end; then exactly what is to be kept is there."""
    before = inspect(folder, 0, stock)
    last = (step(before) if before else 0) + 3
    processes = start(told, setting=setting, folder=folder, stock=stock, resume=bool(before),
                      last=last, **kwargs)  # fmt: skip
    codes = []
    wait_for(lambda: codes.extend(ended(processes)) or not processes, processes, 'did not end')
    if any(codes):
        raise Failed(f'the resumed run failed: {output(folder)}')
    inspect(folder, last, stock)
    names = {file.name for file in folder.iterdir()}
    left = [name for name in names if 'unfinished' in name]
    numbered = [name for name in names if name.startswith('iter_')]
    best = [name for name in names if name.startswith('best_')]
    keep = setting.max_keep_ckpts
    if left or (keep > 0 and len(numbered) != keep) or len(best) != setting.save_best:
        raise Failed(f'the finished run left {", ".join(sorted(left + numbered + best))}')
    if best:
        state = safe_files.read(folder / f'iter_{last}.pth')['message_hub']['runtime_info']
        highest = max(score(n) for n in range(1, last + 1))
        if Path(state['best_ckpt']).name != best[0] or state['best_score'] != highest:
            raise Failed(
                f'the best is {best[0]}, but {state["best_ckpt"]} with {state["best_score"]} is '
                f'recorded; it should be {highest}'
            )


def test(setting: Setting, seed: int, kills: int, told: np.ndarray, window: float, **kwargs):
    """Kill a run several times.

    Returns:
        What it was doing when it was killed, and whether something was lost (a line, or None).
    """
    chance, phases = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix='crash_test_') as name:
        folder = Path(name)
        kwargs.update(folder=folder, setting=setting, told=told)
        found = None
        try:
            for _ in range(kills):
                phases.append(None)
                phases[-1] = kill_once(
                    chance, resume=bool(found), last=10_000, window=window, **kwargs
                )
                if told[START] and told[START] - 1 != (step(found) if found else 0):
                    raise Failed(f'went on from iteration {told[START] - 1} instead of {found}')
                before = step(found) if found else 0
                found = inspect(folder, max(before, int(told[SAVED])), kwargs['stock'])
            finish(**kwargs)
        except Failed as failure:
            return phases, f'seed {seed} ({setting}), after kill {len(phases)}: {failure}'
    return phases, None


def main() -> None:
    parser = errors.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--kills', type=int, default=200, help='how many (default: 200)')
    add('--seed', type=int, default=0, help='of the first run (default: 0)')
    add('--megabytes', type=float, default=4, help='size of a checkpoint (default: 4)')
    add('--window', type=float, default=0.5, help='seconds of training within which it is killed')
    add('--processes', type=int, choices=[1, 2], help='only runs of so many processes')
    add('--stock', action='store_true', help="mmengine's own saving and resuming")
    args = parser.parse_args()

    settings = [s for s in SETTINGS if args.processes in (None, s.processes)]
    told = np.frombuffer(mmap.mmap(-1, 64), np.int64)
    # A report on the machine that every run would make anew, with the compiler's help.
    mmengine_runner.collect_env = dict
    gc.freeze()  # no run looks for garbage among all that is imported here
    phases, failures, seed, left = [], [], args.seed, args.kills
    begin = time.monotonic()
    while left > 0:
        setting = settings[seed % len(settings)]
        killed, failure = test(
            setting, seed, min(left, KILLS_PER_RUN), told, args.window,
            megabytes=args.megabytes, stock=args.stock,
        )  # fmt: skip
        phases += killed
        left -= len(killed)
        seed += 1
        if failure:
            failures.append(failure)
            print(failure, flush=True)
    hits = ', '.join(f'{phases.count(i)} in {name}' for i, name in enumerate(PHASES))
    print(f'killed: {hits} ({seed - args.seed} runs, {time.monotonic() - begin:.0f} s)')
    print(f'{len(phases)} kills, {len(failures)} lost')
    if failures:
        sys.exit(1)


if __name__ == '__main__':
    errors.main(main)
