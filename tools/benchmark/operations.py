"""Operations that a training step hands to a GPU, which waits for them where it is fast.

``python tools/benchmark/operations.py --tokens 50 --ways tokens ours lean with_cp full``
``python tools/benchmark/operations.py --arch large --img-size 512 --ways reference tokens ours``

Counted on the device 'meta', which has no numbers, in float32: autocast adds its casts. Views are
left out: they start nothing.
"""

from typing import Any

import common
import models
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vpt_dense.errors import main


class Count(TorchDispatchMode):
    """Counts operations whose output is no view of an input."""

    number = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Count and compute one operation."""
        out = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.number += any(tensor._base is None for tensor in tensors) and not function.is_view
        return out


def run() -> None:
    """Command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    line = models.parser(__doc__, ['tokens', 'ours', 'lean', 'with_cp', 'full'])
    line.set_defaults(device='meta', against=['p0', 'tokens'])
    args = line.parse_args()
    models.check(args)
    logging.filter_warnings()  # the imports have set their own
    rows = []
    for img_size, batch, images, built in models.groups(args):
        for (way, tokens), model in built.items():
            step = models.train_step(model, images, args)
            with Count() as count:
                step()
            rows.append(dict(img_size=img_size, batch=batch, tokens=tokens, way=way,
                             operations=count.number))
    cells = models.table(rows, args, 'operations', lambda own, base: f'{own / base:.3f}')
    for cell, row in zip(cells, rows, strict=True):
        cell.append(f'{row["operations"]:,}')
    common.show(models.title(args, 'operations of a training step'),
                [*models.COLUMNS, *(f'/ {way}' for way in models.bases(args)), 'operations'],
                cells, note=models.legend(args.ways))
    common.write(args.json, args, models.figures('operations', args, rows))


if __name__ == '__main__':
    main(run)
