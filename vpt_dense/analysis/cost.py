"""What prompts cost: latency, throughput, memory and arithmetic by their number."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpt_dense.comparison import runs

#: The key that says how many prompts there are.
TOKENS = 'model.backbone.prompt.num_tokens'


def flops(cfg: Any) -> float:
    """Floating point operations of the prediction of one image, as PyTorch counts them, in 1e9.

    Products of matrices, convolutions and attention; two operations a multiplication. No weights
    are needed and nothing is computed.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    from vpt_dense import building, memory

    class Counter(TorchDispatchMode):
        """Not FlopCounterMode: it hooks every module, for which prompts take a longer way."""

        total = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            formula = flop_registry.get(func._overloadpacket)
            if formula is not None:
                self.total += formula(*args, **(kwargs or {}), out_val=out)
            return out

    cfg = copy.deepcopy(cfg)
    with building.scope(cfg):
        model = building.build_model(cfg, 'meta').eval()
        size, _ = memory.image_size(cfg, model)
    backbone = cfg.model.backbone
    images = torch.empty(1, backbone.get('in_channels', 3), *size, device='meta')
    with torch.no_grad(), Counter() as counter:
        model(images, mode='tensor')
    return counter.total / 1e9


def measure(
    recipe: str, rows: Sequence[tuple[str, int | None]], folder: Path, steps: int,
    options: Sequence[str] = (), amp: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure methods, each in a process of its own.

    Args:
        recipe: A recipe.
        rows: (method, number of prompts; None: the method has none).
        folder: Keeps what was measured on this machine.
        steps: Steps that are timed.
        options: Overrides of the config.
        amp: Mixed precision in training.

    Returns:
        Of each row ``method``, ``tokens``, ``gflops`` (of one image's prediction), ``test_ms``,
        ``images_per_second`` (testing), ``train_ms``, ``peak_megabytes``.

    Raises:
        UserError: If one fails.
    """
    from vpt_dense.errors import UserError

    found = []
    for method, tokens in rows:
        own = [*options, *([] if tokens is None else [f'{TOKENS}={tokens}'])]
        comparison = runs.Comparison(recipe, folder, amp, options=own)
        costs, failures = comparison.measure([method], steps, runs.num_cpus())
        if failures:
            raise UserError(f'{method}: {next(iter(failures.values()))}')
        cost = costs[method]
        found.append(dict(
            method=method, tokens=tokens, gflops=flops(comparison.config(method)),
            images_per_second=1000 / cost['test_ms'],
            **{key: cost[key] for key in ('test_ms', 'train_ms', 'peak_megabytes')}))
    return found
