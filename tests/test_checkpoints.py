"""Checkpoints of runs: nothing is lost when a run is killed, a disk is full or a file damaged."""

import errno
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook as StockHook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner as StockRunner
from tool_helpers import forget_runs, run_tool, tiny_folder, write_leaf
from torch.utils.data import DataLoader, Dataset
from utils import ROOT

from vpt_dense import safe_files
from vpt_dense.engine.runner import Runner
from vpt_dense.errors import UserError
from vpt_dense.hooks import CheckpointHook
from vpt_dense.weights import checkpoints

# --- runs that take a fraction of a second ---------------------------------------------------


class Toy(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, inputs, mode='tensor'):
        out = self.layer(torch.stack(inputs))
        return dict(loss=out.square().mean()) if mode == 'loss' else list(out)


class Points(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.full((3,), float(index)))


#: Scores by iteration; 1 is the first.
SCORES = {'a': [1, 3, 2, 4, 4, 3, 5, 6], 'b': [5, 1, 6, 2, 7, 3, 8, 4]}


class Scores(BaseMetric):
    runner: Runner

    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict:
        return {key: float(scores[self.runner.iter - 1]) for key, scores in SCORES.items()}


def build(folder: Path, last: int, runner=Runner, by_epoch=False, hook=None, **options):
    forget_runs()
    torch.manual_seed(0)  # the model is built before the runner sets its seed
    hook = {'type': 'CheckpointHook', 'interval': 1, 'by_epoch': by_epoch, **(hook or {})}
    loop = dict(max_epochs=last) if by_epoch else dict(max_iters=last)
    loader = DataLoader(Points(), batch_size=4, collate_fn=pseudo_collate)
    metric = Scores()
    metric.runner = runner(
        model=Toy(),
        work_dir=str(folder),
        train_dataloader=loader,
        val_dataloader=loader,
        train_cfg=dict(by_epoch=by_epoch, val_interval=1, **loop),
        val_cfg=dict(),
        val_evaluator=[metric],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        param_scheduler=[dict(type='PolyLR', by_epoch=by_epoch, end=10, power=1.0)],
        default_hooks=dict(checkpoint=hook, logger=dict(type='LoggerHook', interval=1)),
        default_scope='mmengine',
        experiment_name='test',
        randomness=dict(seed=0),
        **options,
    )
    return metric.runner


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Leave out the report on the machine, and the pause when a loader begins anew."""
    import mmengine.runner.loops
    import mmengine.runner.runner

    monkeypatch.setattr(mmengine.runner.runner, 'collect_env', dict)
    monkeypatch.setattr(mmengine.runner.loops.time, 'sleep', lambda seconds: None)


def train(folder: Path, last: int, **options) -> Runner:
    runner = build(folder, last, **options)
    runner.train()
    return runner


def saved(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.suffix == '.pth'}


def unfinished(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if 'unfinished' in file.name]


def info(path: Path) -> dict:
    return safe_files.read(path)['message_hub']['runtime_info']


# --- what is saved ---------------------------------------------------------------------------


@pytest.mark.parametrize('by_epoch', [False, True])
def test_contents_are_those_of_mmengine(tmp_path, by_epoch):
    ours = train(tmp_path / 'ours', 2, by_epoch=by_epoch)
    train(tmp_path / 'theirs', 2, by_epoch=by_epoch, runner=StockRunner)
    name = 'epoch_2.pth' if by_epoch else 'iter_2.pth'
    found = safe_files.read(tmp_path / 'ours' / name)
    wanted = torch.load(tmp_path / 'theirs' / name, weights_only=False)
    assert found.keys() - wanted.keys() == {'optimizer_of'} and wanted.keys() <= found.keys()
    assert found['meta'].keys() - wanted['meta'].keys() == {
        'vpt_dense_version', 'versions', 'run_size'}
    assert wanted['meta'].keys() <= found['meta'].keys()
    for key in ('epoch', 'iter', 'seed'):
        assert found['meta'][key] == wanted['meta'][key], key
    assert found['meta']['cfg'] == ours.cfg.pretty_text
    assert found['optimizer']['param_groups'][0]['lr'] == pytest.approx(
        wanted['optimizer']['param_groups'][0]['lr']
    )
    assert found['optimizer']['state'].keys() == wanted['optimizer']['state'].keys()
    assert found['param_schedulers'] == wanted['param_schedulers']
    assert torch.equal(found['state_dict']['layer.weight'], ours.model.layer.weight)


def test_mmengine_goes_on_from_ours(tmp_path):
    train(tmp_path, 2)
    runner = train(tmp_path, 3, runner=StockRunner, resume=True)
    assert runner.iter == 3


def test_meta_and_hooks_reach_the_file(tmp_path):
    class Add(StockHook.__base__):
        def before_save_checkpoint(self, runner, checkpoint) -> None:
            checkpoint['added'] = torch.ones(2)

    runner = build(tmp_path, 1, custom_hooks=[Add()])
    runner.train()
    meta = dict(iter=17)
    runner.save_checkpoint(str(tmp_path), 'x.pth', save_optimizer=False, meta=meta, by_epoch=False)
    found = safe_files.read(tmp_path / 'x.pth')
    assert found['meta']['iter'] == 17 and meta == dict(iter=17)
    assert found['added'].tolist() == [1, 1]
    assert 'optimizer' not in found and 'param_schedulers' in found


def test_the_log_history_is_bounded():
    values = [random.Random(i).random() for i in range(1500)]
    scalars = dict(loss=HistoryBuffer(values, [1] * 1500), lr=HistoryBuffer([1], [1]))
    state = dict(log_scalars=scalars, runtime_info={}, resumed_keys={})
    bounded = checkpoints.bound_history(state)
    log, count = bounded['log_scalars']['loss'].data
    assert log.tolist() == values[-1000:] and count.tolist() == [1] * 1000
    assert bounded['log_scalars']['lr'].data[0].tolist() == [1]
    assert len(state['log_scalars']['loss'].data[0]) == 1500
    for window in (1, 10, 50, 1000):  # what the log prints is an average over such a window
        before, after = (s['log_scalars']['loss'].mean(window) for s in (state, bounded))
        assert before == after


def test_logs_go_on_after_a_resume(tmp_path, monkeypatch):
    """With a history that was cut, a resumed run logs what the uninterrupted one does."""
    bound = checkpoints.bound_history
    monkeypatch.setattr(checkpoints, 'bound_history', lambda state: bound(state, 2))
    overall = dict(data_src='loss', log_name='mean', method_name='mean', window_size='global')
    processor = dict(window_size=2, by_epoch=False, custom_cfg=[overall])

    def losses(folder: Path) -> list[str]:
        logs = sorted(folder.rglob('*.log'))
        return re.findall(r'Iter\(train\) \[ *6/6\].* (loss: \S+)', logs[-1].read_text())

    train(tmp_path / 'whole', 6, log_processor=processor)
    train(tmp_path / 'parts', 4, log_processor=processor)
    log = safe_files.read(tmp_path / 'parts/iter_4.pth')['message_hub']['log_scalars']['train/loss']
    assert len(log.data[0]) == 2
    train(tmp_path / 'parts', 6, log_processor=processor, resume=True)
    assert losses(tmp_path / 'whole') == losses(tmp_path / 'parts') != []


def test_published_checkpoints(tmp_path):
    train(tmp_path, 2, hook=dict(published_keys=['meta', 'state_dict'], save_best='a',
                                 rule='greater'))  # fmt: skip
    published = [name for name in saved(tmp_path) if re.search(r'-[0-9a-f]{8}\.pth$', name)]
    assert sorted(name[:-13] for name in published) == ['best_a_iter_2', 'iter_2']
    for name in published:
        assert safe_files.read(tmp_path / name).keys() == {'meta', 'state_dict'}


# --- the hook --------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['CheckpointHook', 'mmengine.CheckpointHook', StockHook,
                                  'vpt_dense.CheckpointHook'])  # fmt: skip
def test_a_plain_checkpoint_hook_is_ours(tmp_path, kind):
    runner = build(tmp_path, 1, hook=dict(type=kind))
    assert [type(h) for h in runner.hooks if isinstance(h, StockHook)] == [CheckpointHook]


def test_without_a_config_too(tmp_path):
    forget_runs()
    runner = Runner(model=Toy(), work_dir=str(tmp_path), default_scope='mmengine')
    assert [type(h) for h in runner.hooks if isinstance(h, StockHook)] == [CheckpointHook]


def test_other_checkpoint_hooks_stay_what_they_are(tmp_path):
    class Own(StockHook):
        pass

    runner = build(tmp_path, 1, hook=dict(type=Own))
    assert [type(h) for h in runner.hooks if isinstance(h, StockHook)] == [Own]


@pytest.mark.parametrize('keep, names', [(1, {6}), (2, {5, 6}), (-1, {1, 2, 3, 4, 5, 6})])
@pytest.mark.parametrize('by_epoch', [False, True])
def test_what_is_kept(tmp_path, keep, names, by_epoch):
    train(tmp_path, 6, by_epoch=by_epoch, hook=dict(max_keep_ckpts=keep))
    kind = 'epoch' if by_epoch else 'iter'
    assert saved(tmp_path) == {f'{kind}_{n}.pth' for n in names}
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / f'{kind}_6.pth')


def test_save_best_and_keep_one(tmp_path):
    train(tmp_path, 6, hook=dict(max_keep_ckpts=1, save_best=['a', 'b'], rule='greater'))
    assert saved(tmp_path) == {'iter_6.pth', 'best_a_iter_4.pth', 'best_b_iter_5.pth'}
    best = info(tmp_path / 'iter_6.pth')
    assert best['best_score_a'] == 4 and best['best_score_b'] == 7
    assert Path(best['best_ckpt_b']).name == 'best_b_iter_5.pth'


def test_save_best_auto(tmp_path):
    train(tmp_path, 4, hook=dict(max_keep_ckpts=1, save_best='auto', rule='greater'))
    train(tmp_path, 8, hook=dict(max_keep_ckpts=1, save_best='auto', rule='greater'), resume=True)
    assert saved(tmp_path) == {'iter_8.pth', 'best_a_iter_8.pth'}


def test_save_best_of_an_unknown_metric(tmp_path):
    with pytest.raises(UserError, match="gives no 'mIoU', but a, b$"):
        train(tmp_path, 1, hook=dict(save_best='mIoU'))


@pytest.mark.parametrize('start', [3, 4, 5])
def test_kept_ones_after_a_resume(tmp_path, start):
    """From whichever kept checkpoint the run goes on, so many are kept in the end."""
    hook = dict(max_keep_ckpts=3, save_best='a', rule='greater')
    train(tmp_path, 5, hook=hook)
    assert saved(tmp_path) == {'iter_3.pth', 'iter_4.pth', 'iter_5.pth', 'best_a_iter_4.pth'}
    checkpoint = str(tmp_path / f'iter_{start}.pth')
    train(tmp_path, 8, hook=hook, resume=True, load_from=checkpoint)
    assert saved(tmp_path) == {'iter_6.pth', 'iter_7.pth', 'iter_8.pth', 'best_a_iter_8.pth'}
    assert info(tmp_path / 'iter_8.pth')['keep_ckpt_ids'] == [6, 7, 8]


def test_fewer_are_kept_after_a_resume(tmp_path):
    train(tmp_path, 5, hook=dict(max_keep_ckpts=4))
    train(tmp_path, 6, hook=dict(max_keep_ckpts=2), resume=True)
    assert saved(tmp_path) == {'iter_5.pth', 'iter_6.pth'}


def test_a_copied_folder_leaves_its_original_alone(tmp_path):
    hook = dict(max_keep_ckpts=1, save_best='a', rule='greater')
    train(tmp_path / 'first', 4, hook=hook)
    shutil.copytree(tmp_path / 'first', tmp_path / 'copy')
    before = {name: (tmp_path / 'first' / name).read_bytes() for name in saved(tmp_path / 'first')}
    train(tmp_path / 'copy', 8, hook=hook, resume=True)
    assert saved(tmp_path / 'copy') == {'iter_8.pth', 'best_a_iter_8.pth'}
    assert before == {
        name: (tmp_path / 'first' / name).read_bytes() for name in saved(tmp_path / 'first')
    }


def test_going_on_in_another_folder_removes_nothing_there(tmp_path):
    hook = dict(max_keep_ckpts=1, save_best='a', rule='greater')
    train(tmp_path / 'first', 4, hook=hook)
    (tmp_path / 'other').mkdir()
    for name in ('iter_3.pth', 'iter_4.pth', 'best_a_iter_2.pth', 'best_a_iter_4.pth'):
        (tmp_path / 'other' / name).write_text("another run's")
    checkpoint = str(tmp_path / 'first/iter_4.pth')
    train(tmp_path / 'other', 7, hook=hook, resume=True, load_from=checkpoint)
    assert saved(tmp_path / 'other') == {
        'iter_3.pth', 'iter_4.pth', 'best_a_iter_2.pth', 'best_a_iter_4.pth',
        'iter_7.pth', 'best_a_iter_7.pth',
    }  # fmt: skip
    assert saved(tmp_path / 'first') == {'iter_4.pth', 'best_a_iter_4.pth'}


def test_checkpoints_in_a_folder_of_their_own(tmp_path):
    hook = dict(max_keep_ckpts=1, out_dir=str(tmp_path / 'out'), save_best='a', rule='greater')
    train(tmp_path / 'run', 4, hook=hook)
    leftover(tmp_path / 'out/run')
    train(tmp_path / 'run', 8, hook=hook, resume=True)
    assert saved(tmp_path / 'out/run') == {'iter_8.pth', 'best_a_iter_8.pth'}
    assert not unfinished(tmp_path / 'out/run')


def leftover(folder: Path) -> None:
    ended = subprocess.Popen(['true'])
    ended.wait()
    (folder / f'.iter_9.pth.{ended.pid}.abc.unfinished').touch()


def test_leftovers_of_killed_processes_are_swept(tmp_path):
    leftover(tmp_path)
    train(tmp_path, 1)
    assert not unfinished(tmp_path) and saved(tmp_path) == {'iter_1.pth'}


# --- killed between any two steps ------------------------------------------------------------


class Killed(BaseException):
    """Ends a run wherever it is."""


class Steps:
    """Counts what happens on the disk and stops a run before one of these steps."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.count, self.stop, self.folder = 0, math.inf, folder
        for owner, name in ((os, 'replace'), (os, 'remove')):
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name)))

    def wrap(self, function):
        def wrapped(path, *args, **kwargs):
            if Path(path).parent == self.folder and ('.pth' in str(path) or 'last_' in str(path)):
                self.count += 1
                if self.count == self.stop:
                    self.stop = math.inf
                    raise Killed
            return function(path, *args, **kwargs)

        return wrapped


@pytest.mark.slow
@pytest.mark.parametrize(
    'hook',
    [
        dict(max_keep_ckpts=1, save_best='a', rule='greater'),
        dict(max_keep_ckpts=2, save_best=['a', 'b'], rule='greater'),
    ],
    ids=['keep 1, one metric', 'keep 2, two metrics'],
)
def test_killed_between_any_two_steps(tmp_path, monkeypatch, hook):
    """What an uninterrupted run leaves, a run leaves that was killed once, wherever that was."""
    last = 3
    folder = tmp_path / 'run'
    steps = Steps(monkeypatch, folder)
    options = dict(hook=hook, custom_hooks=[dict(type='vpt_dense.ReportHook')])
    train(folder, last, **options)
    wanted, best = saved(folder), info(folder / f'iter_{last}.pth')
    number = steps.count
    assert number > 3 * last
    removed = 0
    for stop in range(1, number + 1):
        shutil.rmtree(folder)
        steps.count, steps.stop = 0, stop
        with pytest.raises(Killed):
            train(folder, last, **options)
        for name in saved(folder):
            safe_files.verify(folder / name)
        removed += len(saved(folder) - wanted)
        # the first is not there yet; what was killed before its first save begins anew
        resume = bool(saved(folder))
        train(folder, last, resume=resume, **options)
        assert saved(folder) == wanted, stop
        assert not unfinished(folder)
        found = info(folder / f'iter_{last}.pth')
        for key in best:
            if key.startswith(('best_', 'keep_')):
                assert found[key] == best[key], (stop, key)
    assert removed


# --- a full disk -----------------------------------------------------------------------------


def test_a_full_disk_leaves_what_was_saved(tmp_path, monkeypatch):
    put = safe_files._Sealing._put

    def full(self, content) -> None:
        if 'iter_3' in str(self._stream.name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(safe_files._Sealing, '_put', full)
        with pytest.raises(UserError, match='cannot write .*/iter_3.pth: the disk is full'):
            train(tmp_path, 5, hook=dict(max_keep_ckpts=1))
    assert saved(tmp_path) == {'iter_2.pth'}
    assert not unfinished(tmp_path)
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_2.pth')
    train(tmp_path, 5, hook=dict(max_keep_ckpts=1), resume=True)
    assert saved(tmp_path) == {'iter_5.pth'}


def test_a_real_full_disk(small_disk):
    runner = build(small_disk / 'run', 5)
    runner.model.register_buffer('ballast', torch.randn(100_000))  # 0.4 MB: two fit
    with pytest.raises(UserError, match='cannot write .*/iter_3.pth: the disk is full'):
        runner.train()
    assert saved(small_disk / 'run') == {'iter_1.pth', 'iter_2.pth'}
    assert not unfinished(small_disk / 'run')
    assert checkpoints.find_last(small_disk / 'run').endswith('iter_2.pth')


# --- the one to go on from -------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b'')


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def folder_with(folder: Path, *names: str, last: str | None) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        safe_files.write(dict(state_dict=dict(weight=torch.ones(50)), name=name), folder / name)
    if last is not None:
        (folder / 'last_checkpoint').write_text(str(folder / last))
    return folder


def find(folder: Path) -> tuple[str, list[str]]:
    said = []
    return Path(checkpoints.find_last(folder, said.append)).name, said


THREE = ('iter_8.pth', 'iter_9.pth', 'iter_10.pth')


def test_the_pointer_is_followed(tmp_path):
    folder_with(tmp_path, *THREE, 'best_mIoU_iter_12.pth', last='iter_9.pth')
    assert find(tmp_path) == ('iter_9.pth', [])


@pytest.mark.parametrize('content, fault', [
    (None, 'is missing'), (b'', 'is empty'), (b'\n', 'is empty'), (b'\0\0\0', 'is empty'),
    (b'/absent/iter_99.pth', 'names /absent/iter_99.pth, which is gone'),
    (b'\xff\xfe', 'which is gone'),
])  # fmt: skip
def test_a_bad_pointer(tmp_path, content, fault):
    """The newest by number is taken, not by name; what and why is said in one line."""
    folder_with(tmp_path, *THREE, last='iter_9.pth')
    (tmp_path / 'last_checkpoint').unlink()
    if content is not None:
        (tmp_path / 'last_checkpoint').write_bytes(content)
    found, [line] = find(tmp_path)
    assert found == 'iter_10.pth'
    assert fault in line and line.endswith('iter_10.pth instead') and '\n' not in line


def test_a_moved_folder(tmp_path):
    folder_with(tmp_path / 'old', *THREE, last='iter_9.pth')
    (tmp_path / 'old').rename(tmp_path / 'new')
    found, [line] = find(tmp_path / 'new')
    assert found == 'iter_9.pth'
    assert 'old/iter_9.pth, which is gone' in line and 'new/iter_9.pth instead' in line


def test_a_copied_folder(tmp_path):
    """What the pointer names is still there, but is another run's now."""
    folder_with(tmp_path / 'old', *THREE, last='iter_9.pth')
    shutil.copytree(tmp_path / 'old', tmp_path / 'new')
    assert checkpoints.find_last(tmp_path / 'new') == str(tmp_path / 'new/iter_9.pth')


@pytest.mark.parametrize('damage', [flip, truncate, empty, zeros, Path.unlink])
def test_a_damaged_newest_checkpoint(tmp_path, damage):
    folder_with(tmp_path, *THREE, last='iter_10.pth')
    damage(tmp_path / 'iter_10.pth')
    found, [line] = find(tmp_path)
    assert found == 'iter_9.pth'
    assert re.search(r'iter_10.pth.* (damaged|empty|refused|gone)', line)
    assert line.endswith('iter_9.pth instead') and '\n' not in line


def test_several_damaged_ones(tmp_path):
    folder_with(tmp_path, *THREE, last='iter_10.pth')
    flip(tmp_path / 'iter_10.pth')
    truncate(tmp_path / 'iter_9.pth')
    found, [line] = find(tmp_path)
    assert found == 'iter_8.pth'
    assert 'iter_10.pth is damaged' in line and 'iter_9.pth is truncated' in line


@pytest.mark.parametrize('best, wanted', [
    ('best_mIoU_iter_9.pth', 'best_mIoU_iter_9.pth'),  # newer than what is left
    ('best_mIoU_iter_8.pth', 'iter_8.pth'), ('best_mIoU_iter_7.pth', 'iter_8.pth'),
])  # fmt: skip
def test_a_best_checkpoint_in_place_of_a_damaged_one(tmp_path, best, wanted):
    folder_with(tmp_path, 'iter_8.pth', 'iter_10.pth', best, last='iter_10.pth')
    flip(tmp_path / 'iter_10.pth')
    found, [line] = find(tmp_path)
    assert found == wanted
    assert ('without optimizer state' in line) == found.startswith('best')


def test_only_a_best_checkpoint_is_left(tmp_path):
    folder_with(tmp_path, 'epoch_3.pth', 'best_acc_top1_epoch_2.pth', last='epoch_3.pth')
    truncate(tmp_path / 'epoch_3.pth')
    assert find(tmp_path)[0] == 'best_acc_top1_epoch_2.pth'


def test_other_files_are_not_taken(tmp_path):
    names = ('vit_large_p16_384.pth', 'iter_8-0a1b2c3d.pth', 'myiter_3.pth')
    folder_with(tmp_path, *names, last=None)
    with pytest.raises(UserError, match='holds no checkpoint; leave --resume out'):
        find(tmp_path)


def test_nothing_is_whole(tmp_path):
    folder_with(tmp_path, 'iter_8.pth', 'iter_9.pth', 'best_a_iter_8.pth', last='iter_9.pth')
    for name in saved(tmp_path):
        flip(tmp_path / name)
    with pytest.raises(UserError, match='iter_9.pth is damaged.*iter_8.pth.*best_a.*leave --res'):
        find(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match='absent does not exist; leave --resume out'):
        find(tmp_path / 'absent')


def test_a_named_file_that_is_damaged(tmp_path):
    folder_with(tmp_path, *THREE, last='iter_10.pth')
    flip(tmp_path / 'iter_10.pth')
    flip(tmp_path / 'iter_9.pth')
    with pytest.raises(UserError, match='10.pth is damaged.*; the newest good .* .*/iter_8.pth$'):
        checkpoints.verify(str(tmp_path / 'iter_10.pth'))
    checkpoints.verify(str(tmp_path / 'iter_8.pth'))
    checkpoints.verify('https://host/iter_10.pth')


# --- whole runs ------------------------------------------------------------------------------


@pytest.mark.parametrize('damage', [flip, truncate, empty])
def test_a_run_goes_on_from_the_newest_good_one(tmp_path, damage):
    train(tmp_path, 4)
    damage(tmp_path / 'iter_4.pth')
    iterations = []

    class Note(StockHook.__base__):
        def before_train_iter(self, runner, *args, **kwargs) -> None:
            iterations.append(runner.iter)

    train(tmp_path, 5, resume=True, custom_hooks=[Note()])
    assert iterations == [3, 4]
    log = sorted(tmp_path.rglob('*.log'))[-1].read_text()
    assert len(re.findall(r'iter_4.pth is .* taking .*iter_3.pth instead', log)) == 1


def test_a_run_never_begins_anew_in_silence(tmp_path):
    train(tmp_path, 1)
    flip(tmp_path / 'iter_1.pth')
    with pytest.raises(UserError, match='iter_1.pth is damaged .*leave --resume out'):
        train(tmp_path, 2, resume=True)


def test_going_on_from_a_best_checkpoint(tmp_path):
    """The schedule goes on, the momentum begins anew."""
    hook = dict(max_keep_ckpts=1, save_best='b', rule='greater')
    train(tmp_path / 'whole', 6, hook=hook)
    train(tmp_path / 'run', 5, hook=hook)
    truncate(tmp_path / 'run/iter_5.pth')
    train(tmp_path / 'run', 6, hook=hook, resume=True)
    assert saved(tmp_path / 'run') == {'iter_6.pth', 'best_b_iter_5.pth'}
    found, wanted = (safe_files.read(tmp_path / name / 'iter_6.pth') for name in ('run', 'whole'))
    assert found['meta']['iter'] == 6
    assert found['param_schedulers'] == wanted['param_schedulers']
    found, wanted = (content['optimizer']['param_groups'][0] for content in (found, wanted))
    assert found == wanted and found['lr'] < 0.05


@pytest.fixture
def leaf(tmp_path):
    return write_leaf(tmp_path, tiny_folder(tmp_path / 'data'))


@pytest.mark.slow
def test_the_tools_say_what_they_use(capfd, leaf, tmp_path):
    work = tmp_path / 'work'
    assert run_tool(capfd, 'train', leaf).code == 0
    flip(work / 'iter_2.pth')
    resumed = run_tool(capfd, 'test', leaf, work)
    assert resumed.code == 0, resumed.err
    line = r'^warning: .*/iter_2.pth is damaged .* taking .* instead$'
    assert len(re.findall(line, resumed.err, re.M)) == 1
    named = run_tool(capfd, 'train', leaf, '--resume', work / 'iter_2.pth')
    assert named.code and re.search(r'2.pth is damaged.*; the newest good one', named.err)
    more = run_tool(capfd, 'train', leaf, '--resume', '--cfg-options', 'train_cfg.max_iters=3')
    assert more.code == 0 and len(re.findall(line, more.err, re.M)) == 1
    assert safe_files.read(work / 'iter_3.pth')['meta']['iter'] == 3
    for name in saved(work):
        truncate(work / name)
    lost = run_tool(capfd, 'train', leaf, '--resume')
    assert lost.code and re.search(r'^error: .*truncated.*leave --resume out', lost.err, re.M)


# --- killed at random moments ----------------------------------------------------------------


def crash_test(kills: int, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / 'tools/dev/crash_test.py', '--kills', str(kills), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_killed_runs_lose_nothing():
    """One process, then two; with the best kept and one more."""
    done = crash_test(4)
    assert done.stdout.endswith('4 kills, 0 lost\n'), done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.long
def test_many_killed_runs_lose_nothing():
    done = crash_test(120, '--seed', '1000')
    assert done.stdout.endswith('120 kills, 0 lost\n'), done.stdout + done.stderr
    killed = re.search(r'(\d+) in training, (\d+) in writing, (\d+) in pointer', done.stdout)
    assert all(int(count) > 0 for count in killed.groups())


@pytest.mark.long
def test_the_crash_test_finds_losses():
    """Saving as mmengine does loses checkpoints."""
    done = crash_test(20, '--stock')
    assert done.returncode == 1 and not done.stdout.endswith(' 0 lost\n')
    assert re.search(r'^seed \d+ \(Setting', done.stdout, re.M)
