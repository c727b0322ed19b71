"""Time and memory of a config's model, measured in a process of its own.

``python -m vpt_dense.comparison.cost CONFIG OUT.json --steps 10``
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpt_dense import errors

if TYPE_CHECKING:
    from mmengine.config import Config

WARM_UP = 2


def measure(cfg: 'Config', steps: int, amp: bool = False) -> dict[str, Any]:
    """Time training and test steps of a config's model, and find the peak of its memory.

    Neither data nor weights are needed: images are noise of the size that training has, weights
    are random. A training step is the runner's: preprocessing, forward, backward, optimizer. A test
    step goes as far as the predictions, on images of the same size.

    Args:
        cfg: A whole config.
        steps: Steps that are timed, after some that warm up.
        amp: Mixed precision in training, as ``tools/train.py --amp`` has it.

    Returns:
        ``train_ms`` and ``test_ms`` (milliseconds an image, medians over steps, of the config's
        batches), ``peak_megabytes`` of training (10^6 bytes), ``peak_kind`` ('CUDA tensors' or
        'resident memory of the process'), ``batch_size``, ``test_batch_size``, ``image`` (height,
        width), ``device``, ``threads``, ``steps``, ``amp``.
    """
    import torch
    from mmengine.optim import build_optim_wrapper

    from vpt_dense import building, machine, memory

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    for owner in (cfg.model, cfg.model.get('backbone') or {}):
        init_cfg = owner.get('init_cfg')
        if isinstance(init_cfg, dict) and init_cfg.get('checkpoint'):
            owner['init_cfg'] = None  # the numbers cost the same
    if amp:
        cfg.optim_wrapper.type = 'vpt_dense.AmpOptimWrapper'
    with building.scope(cfg):
        model = building.build_model(cfg)
        model.init_weights()
        model.to(device)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        size, _ = memory.image_size(cfg, model)
    batch_size = cfg.train_dataloader.batch_size
    test_batch_size = cfg.test_dataloader.batch_size

    def synchronise() -> None:
        if device == 'cuda':
            torch.cuda.synchronize()

    def images(count: int) -> dict:
        batch = memory.synthetic_batch(cfg, count, size)
        for image in batch['inputs']:
            image.random_(0, 256)
        return batch

    def median(step: Callable[[dict], object], count: int) -> float:
        times = []
        for _ in range(WARM_UP + steps):
            batch = images(count)
            synchronise()
            start = time.perf_counter()
            step(batch)
            synchronise()
            times.append(time.perf_counter() - start)
        return 1000 * statistics.median(times[WARM_UP:]) / count

    model.train()
    train_ms = median(lambda batch: model.train_step(batch, optimizer), batch_size)
    if device == 'cuda':
        peak, kind = torch.cuda.max_memory_allocated(), 'CUDA tensors'
    else:
        peak, kind = machine.resident_peak(), 'resident memory of the process'
    model.eval()
    with torch.no_grad():
        test_ms = median(model.test_step, test_batch_size)
    return dict(
        train_ms=train_ms, test_ms=test_ms, peak_megabytes=peak / 1e6, peak_kind=kind,
        batch_size=batch_size, test_batch_size=test_batch_size, image=list(size),
        device=torch.cuda.get_device_name() if device == 'cuda' else 'cpu',
        threads=torch.get_num_threads(), steps=steps, amp=amp,
    )


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = errors.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('out', type=Path, metavar='OUT.json', help='gets the figures')
    parser.add_argument('--steps', type=int, default=10, help='steps that are timed')
    parser.add_argument('--amp', action='store_true', help='mixed precision in training')
    parser.add_config_options()
    return parser.parse_args()


def main() -> None:
    """Measure and write."""
    args = parse_args()
    from vpt_dense import config, logging, safe_files

    logging.quiet()
    cfg = config.load(args.config, args.cfg_options, args.method)
    figures = measure(cfg, args.steps, args.amp)
    safe_files.write_text(args.out, json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
    errors.main(main)
