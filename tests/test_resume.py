"""A resumed run ends where the uninterrupted one does, bit for bit."""

import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from processes import run_two
from resume_runs import IMAGES, differences, final, settings, train
from utils import make_ade_folder

from vpt_dense import seeding

#: Name -> (workers before, workers after the resume, loop, stopped after, options).
CASES = {
    'iter': (0, 0, 'iter', 5, {}),
    'iter 2 workers': (2, 2, 'iter', 5, {}),
    'iter workers 0 to 2': (0, 2, 'iter', 3, {}),
    'iter workers 2 to 1': (2, 1, 'iter', 5, {}),
    'iter of epochs': (0, 0, 'iter-epochs', 5, {}),
    'iter of epochs 2 workers': (2, 2, 'iter-epochs', 5, {}),
    'epoch': (0, 0, 'epoch', 5, {}),
    'epoch 2 workers': (2, 2, 'epoch', 5, {}),
    'epoch workers 2 to 0': (2, 0, 'epoch', 7, {}),
    'epoch at its end': (0, 0, 'epoch', 4, {}),
    'no validation': (0, 0, 'iter', 5, {'train_cfg.val_interval': 100}),
    'no seed': (0, 2, 'iter', 5, {'randomness': dict(seed=None)}),
    'no seed, epoch': (0, 0, 'epoch', 5, {'randomness': dict(seed=None)}),
    'own seed a rank': (0, 0, 'iter', 5, {'randomness': dict(seed=3, diff_rank_seed=True)}),
    'ema': (0, 0, 'iter', 5, {'custom_hooks': [dict(type='EMAHook', momentum=0.1)]}),
    'bf16': (0, 0, 'iter', 5, {'optim_wrapper.type': 'vpt_dense.AmpOptimWrapper'}),
    'accumulated': (0, 0, 'iter', 4, {'optim_wrapper.accumulative_counts': 2}),
    'accumulated, in between': (0, 0, 'iter', 5, {'optim_wrapper.accumulative_counts': 3}),
    'everything trains': (0, 0, 'iter', 5, {'model.backbone.trainable': ['.*']}),
}
#: The first fails without the generators' seeds, the second without positions in the workers.
QUICK = ['iter', 'iter workers 0 to 2', 'accumulated, in between']
#: What two processes share: the data, their order and seeds, the step, buffers. The others differ
#: from these as they do in one process.
OF_TWO = ['iter', 'iter workers 0 to 2', 'iter of epochs 2 workers', 'epoch',
          'epoch workers 2 to 0', 'epoch at its end', 'no seed', 'own seed a rank', 'ema', 'bf16',
          'accumulated, in between']


def check(folder, data, name: str) -> list[str]:
    """Run a case; return what differs."""
    before, after, loop, stop, options = CASES[name]
    whole, cut = folder / name / 'whole', folder / name / 'cut'
    if options.get('randomness', {}).get('seed', 0) is None:
        # Drawn anew by every process that begins; here it must be the same for the comparison.
        train(settings(cut, data, loop, before, **options), stop)
        seed = torch.load(cut / f'iter_{stop}.pth', weights_only=False)['meta']['seed']
        train(settings(whole, data, loop, before, **{**options, 'randomness': dict(seed=seed)}))
    else:
        train(settings(whole, data, loop, before, **options))
        train(settings(cut, data, loop, before, **options), stop)
    assert not (cut / 'iter_8.pth').exists()
    train(settings(cut, data, loop, after, **options), resume=str(cut / f'iter_{stop}.pth'))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # process 0 has saved
    return differences(final(whole), final(cut))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_ade_folder(tmp_path_factory.mktemp('data'), num_images=IMAGES, size=(48, 64))


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES])
def test_one_process(tmp_path, data, name):
    assert check(tmp_path, data, name) == []


def in_process(rank: int, folder, data, found: list) -> None:
    for name in OF_TWO:
        differences = check(folder, data, name)
        if rank == 0:
            found.append((name, differences))


@pytest.fixture(scope='module')
def of_two(tmp_path_factory, data):
    """What differs in two processes, by case; their imports take seconds, so one pair does all."""
    return dict(run_two(in_process, tmp_path_factory.mktemp('two'), data))


@pytest.mark.slow
@pytest.mark.parametrize('name', OF_TWO)
def test_two_processes(of_two, name):
    assert of_two[name] == []


@pytest.mark.slow
def test_passes_over_the_data_do_not_wait(tmp_path, data, monkeypatch):
    # mmengine sleeps between them; a pass has an order of its own.
    monkeypatch.setattr('time.sleep', lambda seconds: pytest.fail(f'slept {seconds} s'))
    orders = []

    class Order(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            orders.extend(sample.img_path for sample in data_batch['data_samples'])

    cfg = settings(tmp_path, data, 'iter-epochs')
    cfg.custom_hooks = [*cfg.get('custom_hooks', ()), dict(type=Order)]
    train(cfg)
    first, second = orders[:IMAGES], orders[IMAGES:2 * IMAGES]
    assert sorted(first) == sorted(second) and first != second


# --- the parts -------------------------------------------------------------------------------


def test_other_keys_give_other_seeds():
    keys = [('step', seed, rank, it) for seed in range(3) for rank in range(3) for it in range(9)]
    assert len({seeding.mix(*key)[0] for key in keys}) == len(keys)
    assert seeding.mix('step', 0, 0, 1) == seeding.mix('step', 0, 0, 1)


def draw() -> tuple:
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_seeded_gives_the_generators_back():
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = draw(), draw()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    first = draw()
    with seeding.seeded('sample', 1):
        inside = draw()
    assert (first, draw()) == expected
    with seeding.seeded('sample', 1):
        assert draw() == inside
    with seeding.seeded('sample', 2):
        assert not set(draw()) & set(inside)


def test_a_position_survives_pickling():
    position = pickle.loads(pickle.dumps(seeding.Position(3, (0, 1, 2, 5))))
    assert position == 3 and position.key == (0, 1, 2, 5)


class Noise(torch.utils.data.Dataset):
    """Samples that say what they drew."""

    metainfo = {'classes': ['a']}
    pipeline = 'old'

    def __getitem__(self, index):
        assert type(index) is int
        return index, draw()

    def __getitems__(self, indices):
        raise AssertionError('the whole batch at once')

    def __len__(self):
        return 6


def loader(workers: int) -> torch.utils.data.DataLoader:
    dataset = seeding.SeededDataset(Noise())
    sampler = seeding.PositionSampler(dict(type='DefaultSampler', shuffle=False), dataset, seed=7)
    return torch.utils.data.DataLoader(
        dataset, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=list
    )


def test_samples_follow_from_their_place_in_the_run():
    one = list(loader(0))
    assert one == list(loader(0)) == list(loader(2))
    again = loader(0)
    assert seeding.start_at(again, 2) == 0
    assert list(again) == one[2:]
    assert list(again) == one  # the next epoch is whole again
    again.sampler.set_epoch(1)
    drawn = {value for batch in list(again) + one for _, sample in batch for value in sample}
    assert len(drawn) == 2 * 6 * 3  # nothing is drawn twice


def test_the_data_set_stays_itself():
    dataset = seeding.SeededDataset(Noise())
    dataset = pickle.loads(pickle.dumps(dataset))
    assert dataset.metainfo == {'classes': ['a']} and len(dataset) == 6
    dataset.pipeline = 'new'
    assert dataset.dataset.pipeline == 'new'
    assert not hasattr(dataset, 'datasets')
    assert dataset[1] != dataset[1]  # a plain index draws as ever
