"""Exported graphs: torch.export and torch.jit.trace of every method on every backbone."""

import pytest
import torch
from methods import BACKBONES, ROWS, SIZES, TASKS, build, build_at_start
from torch import nn
from utils import images, randomise

CASES = [
    (name, family, task)
    for name, row in ROWS.items() for family in row.count for task in row.tasks
]  # fmt: skip


class Outs(nn.Module):
    """Outputs as a tuple, which a graph may return."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return tuple(self.model(x))


def graph_of(model: nn.Module, x: torch.Tensor):
    """Export a model with a batch of any size."""
    shapes = ({0: torch.export.Dim('batch', max=64)},)
    return torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False).module()


def check(model: nn.Module, size, tolerance=1e-10):
    model = Outs(model.double().eval())
    with torch.no_grad():
        x = images(2, 3, *size, dtype=torch.float64)
        graphs = [graph_of(model, x), torch.jit.trace(model, x, check_trace=False)]
        for number in (1, 3):
            x = images(number, 3, *size, seed=number, dtype=torch.float64)
            wanted = model(x)
            for graph in graphs:
                for one, other in zip(wanted, graph(x), strict=True):
                    torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(('name', 'family', 'task'), CASES)
def test_graphs_take_batches_of_any_size(name, family, task):
    check(build(name, family, task), SIZES[family])
