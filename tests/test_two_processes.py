"""A runner in two processes: what DDP is told, what is logged."""

import json
import os

import pytest
import torch
from mmengine import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from processes import run_two
from torch.utils.data import DataLoader, Dataset

#: Options of the config -> what DDP has then.
WRAPPERS = {
    'none': ({}, dict(find_unused_parameters=False, broadcast_buffers=False)),
    'unused': (dict(find_unused_parameters=True),
               dict(find_unused_parameters=True, broadcast_buffers=False)),
    'options': (
        dict(model_wrapper_cfg=dict(find_unused_parameters=True, bucket_cap_mb=7)),
        # As on a GPU: torch's default of what is not said.
        dict(find_unused_parameters=True, broadcast_buffers=True, bucket_bytes_cap=7 << 20),
    ),
    'named': (
        dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', broadcast_buffers=False,
                                    find_unused_parameters=True)),
        dict(find_unused_parameters=True, broadcast_buffers=False),
    ),
}  # fmt: skip


class Toy(BaseModel):
    """Of its two layers one gets no gradient; the loss of process r is about 1 + 2 r."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        rank = int(os.environ['RANK'])
        out = self.used(torch.stack(inputs)).mean() * 0
        return dict(loss=out + 1 + 2 * rank, acc=(out + 50 * rank).detach())


class Points(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.ones(1))


def train(rank: int, folder, found: list) -> None:
    from mmengine.registry import init_default_scope
    from tool_helpers import forget_runs

    from vpt_dense.engine.runner import Runner

    for name, (options, _) in WRAPPERS.items():
        forget_runs()
        init_default_scope('mmengine')
        model = Toy()
        model.unused.requires_grad_(name != 'none')
        runner = Runner(
            model, str(folder / name),
            train_dataloader=DataLoader(Points(), batch_size=2, collate_fn=pseudo_collate),
            train_cfg=dict(by_epoch=False, max_iters=2),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=3),
            auto_scale_lr=dict(enable=True, base_batch_size=6), launcher='pytorch',
            default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
            log_processor=dict(by_epoch=False), cfg=Config(options), experiment_name=name,
        )  # fmt: skip
        told = {key: getattr(runner.model, key) for key in WRAPPERS['options'][1]}
        runner.train()
        if rank == 0:
            (scalars,) = (folder / name).glob('*/vis_data/*scalars.json')
            logged = [json.loads(line) for line in scalars.read_text().splitlines()]
            found.append((name, told, logged))


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """What DDP was told and what was logged, by case; one pair of processes for all."""
    folder = tmp_path_factory.mktemp('two')
    return {name: results for name, *results in run_two(train, folder)}


@pytest.mark.parametrize('name', WRAPPERS)
def test_ddp_gets_its_options(found, name):
    told, _ = found[name]
    assert {key: told[key] for key in WRAPPERS[name][1]} == WRAPPERS[name][1]


def test_losses_and_accuracies_are_means(found):
    for _, logged in found.values():
        assert [line['loss'] for line in logged] == [2, 2]
        assert [line['acc'] for line in logged] == [25, 25]


def test_the_rate_counts_processes_and_accumulation(found):
    """2 images x 2 processes x 3 batches are twice the 6 images of the base rate."""
    for _, logged in found.values():
        assert logged[0]['lr'] == pytest.approx(0.2)
