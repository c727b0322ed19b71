"""Every method of the table in tests/methods.py under two processes."""

import copy

import pytest
import torch
import torch.distributed as dist
from methods import COLUMNS_ARE_LONG, KIN, ROWS, build
from processes import run_two
from test_methods import TRAINED, batch, parameters, penalty, total
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def step_of_two(rank: int, cases: list, failures: list) -> None:
    """In each of two processes: the step on half of a batch, averaged, is that on all of it."""
    dist.init_process_group('gloo')
    for name, family, task in cases:
        x = batch(family, 4, dtype=torch.float64)
        x[2:] = x[2:] * 2 + 1  # halves with gradients of their own
        try:
            model = without_dropout(build(name, family, task)).double().train()
            # Twice: a parameter without a gradient would make DDP fail at the second step.
            wrapped = DistributedDataParallel(copy.deepcopy(model))
            for _ in range(2):
                wrapped.zero_grad()
                (halved(wrapped(x[2 * rank : 2 * rank + 2]), rank)
                 + penalty(wrapped.module)).backward()
            gradients = {n: p.grad for n, p in parameters(wrapped.module).items()}
            outs = model(x)
            (sum(halved([out[2 * half : 2 * half + 2] for out in outs], half)
                 for half in (0, 1)) / 2 + penalty(model)).backward()
            for n, parameter in parameters(model).items():
                error = (parameter.grad - gradients[n]).abs().max()
                if not error <= 1e-9 * parameter.grad.abs().max().clamp(min=1e-3):
                    failures.append(((name, family, task), f'{n} differs by {error:.1e}'))
        except Exception as error:
            failures.append(((name, family, task), str(error)))
    dist.barrier()


def halved(outs, half: int) -> torch.Tensor:
    return total(outs, seed=half)


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, 'dropout', None), float):
            module.dropout = 0.0
    return model


@pytest.fixture(scope='module')
def failures_of_two(request):
    """What failed of the cases that are run; one pair of processes for all."""
    asked = [item.callspec.params for item in request.session.items if item.path == request.path]
    return run_two(step_of_two, [(p['name'], p['family'], p['task']) for p in asked])


#: Of families that differ from another in sizes and layers the task with more outputs will do.
ASKED = [case for case in TRAINED
         if case[1] not in COLUMNS_ARE_LONG or case[2] == ROWS[case[0]].tasks[-1]]
#: Of these each is built of other blocks.
QUICK = ('vit', 'swin', 'convnext', 'resnet')


@pytest.mark.parametrize(('name', 'family', 'task'), [
    pytest.param(*case, marks=() if case[2] == 'cls' and case[1] in QUICK else
                 pytest.mark.long if case[1] in COLUMNS_ARE_LONG or case[0] in KIN else
                 pytest.mark.slow)
    for case in ASKED])
def test_a_step_of_two_processes_is_that_of_one(failures_of_two, name, family, task):
    assert [line for found, line in failures_of_two if found == (name, family, task)] == []
