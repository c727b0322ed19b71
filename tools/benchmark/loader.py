"""Where the time of reading and augmenting goes, and what workers and threads give.

``python tools/benchmark/loader.py``
``python tools/benchmark/loader.py --data data/ade/ADEChallengeData2016 --workers 0 2 4 8``
``python tools/benchmark/loader.py --config configs/vpt/vit-b_deep_imagefolder.py``

Without ``--data`` a folder is made: JPEG images of about 683x512 with the spectrum of photographs,
masks of a dozen classes. Steps and decoders are shown in CPU time, loaders in images a second; the
latter need an idle machine.
"""

import argparse
import contextlib
import importlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import common
import cv2
import numpy as np
import torch

from vpt_dense.errors import UserError, main

CONFIG = Path(__file__).resolve().parents[2] / 'configs/vpt/setr_vit-l_deep_ade20k.py'
CLASSES = ('a', 'b')  # of a made folder of images
SIZES = [(512, 683), (512, 683), (512, 683), (683, 512)]  # (height, width); ADE20K's median


def make_folder(root: Path, images: int) -> None:
    """Write ``images`` pairs of a training split: in ADE20K's layout, and as folders of classes."""
    rng = np.random.default_rng(0)
    folders = [root / kind / 'training' for kind in ('images', 'annotations')]
    for folder in (*folders, *(root / 'train' / name for name in CLASSES)):
        folder.mkdir(parents=True)
    for i in range(images):
        image, mask = make_pair(rng, *SIZES[i % len(SIZES)])
        names = folders[0] / f'{i:05}.jpg', root / 'train' / CLASSES[i % 2] / f'{i:05}.jpg'
        for name in names:
            cv2.imwrite(str(name), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        cv2.imwrite(str(folders[1] / f'{i:05}.png'), mask)


def make_pair(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Make an image (H, W, 3) uint8 and its mask (H, W) uint8, labels 0 to 150.

    The amplitude falls with the frequency as it does in photographs, so that a JPEG decoder has
    as much to do; the regions of the mask have curved borders, and each has its own shade.
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1

    def texture() -> np.ndarray:
        shape = (*frequency.shape, 2)
        spectrum = rng.standard_normal(shape).view(complex)[..., 0] / frequency**1.3
        values = np.fft.irfft2(spectrum, (height, width))
        return values / values.std()

    num_regions = 24
    common_part = texture()
    centres = rng.random((num_regions, 2)) * (height, width)
    rows, columns = np.mgrid[:height, :width]
    bent = rows + 20 * texture(), columns + 20 * texture()
    region = np.argmin([(bent[0] - y) ** 2 + (bent[1] - x) ** 2 for y, x in centres], axis=0)
    labels = rng.choice(rng.integers(0, 151, num_regions // 2), num_regions).astype(np.uint8)
    shades = rng.integers(-60, 61, (num_regions, 3))[region]
    bands = np.stack([0.85 * common_part + 0.4 * texture() for _ in range(3)], axis=-1)
    return np.clip(110 + 50 * bands + shades, 0, 255).astype(np.uint8), labels[region]


def stock(pipeline: list[dict]) -> list[dict]:
    """The pipeline with the stack's transforms in place of this package's."""
    renamed = {'LoadMask': 'LoadAnnotations'}
    found = []
    for step in pipeline:
        name = step['type'].removeprefix('vpt_dense.')
        found.append({**step, 'type': renamed.get(name, name)})
    return found


def tensors(packed: dict) -> list[torch.Tensor]:
    """The image of a sample and, if there is one, its mask."""
    mask = packed['data_samples'].get('gt_sem_seg')
    return [packed['inputs']] + ([] if mask is None else [mask.data])


def time_steps(pipelines: dict[str, list], infos: list[dict], rounds: int) -> dict:
    """Run every pipeline on every image with the same random numbers.

    Args:
        pipelines: Transforms by the name of the pipeline.
        infos: What the data set knows of each image.
        rounds: As in :func:`common.in_turn`.

    Returns:
        {pipeline: for each step the seconds an image, one value a round}.

    Raises:
        UserError: If the pipelines differ in a single pixel.
    """
    times = {name: [[] for _ in steps] for name, steps in pipelines.items()}
    for turn in range(rounds + 1):
        spent = {name: [0.0] * len(steps) for name, steps in pipelines.items()}
        for i, info in enumerate(infos):
            packed = {}
            for name, steps in pipelines.items():
                np.random.seed(turn * len(infos) + i)
                results = dict(info, seg_fields=[])
                for k, step in enumerate(steps):
                    start = time.process_time()
                    results = step(results)
                    spent[name][k] += time.process_time() - start
                packed[name] = results
            if not all(map(torch.equal, *map(tensors, packed.values()))):
                raise UserError(f'{info["img_path"]}: the pipelines give different samples')
        if turn:
            for name, values in spent.items():
                for k, value in enumerate(values):
                    times[name][k].append(value / len(infos))
    return times


def time_decoders(files: list[bytes], rounds: int) -> dict:
    """Time what makes pixels of a file.

    Returns:
        {decoder: (seconds an image, one value a round; greatest difference in grey levels from
        what the default decoder gives, resized where need be)}.
    """
    import mmcv

    def halved(data: bytes) -> np.ndarray:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)

    decoders = {
        'cv2 (the default)': mmcv.imfrombytes,
        'pillow': lambda data: mmcv.imfrombytes(data, backend='pillow'),
        'cv2 at half size': halved,
    }
    times = {name: [] for name in decoders}
    furthest = dict.fromkeys(decoders, 0)
    for turn in range(rounds + 1):
        for name, decode in decoders.items():
            start = time.process_time()
            images = [decode(data) for data in files]
            if turn:
                times[name].append((time.process_time() - start) / len(files))
            for data, image in zip(files, images, strict=True):
                wanted = mmcv.imfrombytes(data)
                if image.shape != wanted.shape:
                    wanted = cv2.resize(wanted, image.shape[1::-1])
                gap = np.abs(wanted.astype(int) - image).max()
                furthest[name] = max(furthest[name], int(gap))
    return {name: (times[name], furthest[name]) for name in decoders}


def epochs(cfg: dict, cv2_threads: int, device: str) -> tuple[float, float, float]:
    """Load the data set twice.

    Returns:
        Seconds to the first batch with new workers, to the first batch with kept ones, and for
        the whole second pass.
    """
    from mmengine.runner import Runner

    cv2.setNumThreads(cv2_threads)
    loader = Runner.build_dataloader(cfg, seed=0)
    first, whole = [], []
    for _ in range(2):
        start = time.perf_counter()
        for number, batch in enumerate(loader):
            for image in batch['inputs']:
                image.to(device, non_blocking=loader.pin_memory)
            if number == 0:
                first.append(time.perf_counter() - start)
        common.synchronise(device)
        whole.append(time.perf_counter() - start)
    return *first, whole[1]


def arguments() -> argparse.Namespace:
    """Read and check the command line."""
    parser = common.parser(__doc__)
    parser.add_argument('--config', default=str(CONFIG), help='whose training data is loaded')
    parser.add_argument('--data', type=Path, help='its data_root; made if absent')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--images', type=int, default=48, help='to make, or to read at most')
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2, 4])
    parser.add_argument('--cv2-threads', type=int, nargs='+', default=[0, 1, -1],
                        help='-1 is OpenCV\'s own number, 0 no thread of its own')
    parser.add_argument('--prefetch', type=int, nargs='+', default=[2, 4],
                        help='batches that a worker is ahead')
    args = parser.parse_args()
    common.check(args)
    if args.dtype != 'float32':
        raise UserError('--dtype: a loader computes nothing in it; leave it out')
    if args.images < 2 or min(args.workers) < 0 or min(args.prefetch) < 1:
        raise UserError('--images must be at least 2, --workers 0, --prefetch 1')
    if args.batch < 1:
        raise UserError(f'--batch must be at least 1, found {args.batch}')
    return args


def run() -> None:
    """Command line."""
    from vpt_dense import config, logging

    logging.filter_warnings()
    args = arguments()
    with tempfile.TemporaryDirectory() as made:
        if args.data is None:
            make_folder(Path(made), args.images)
        cfg = config.load(args.config, {'dataset.data_root': str(args.data or made)})
        measure(cfg, args)


def measure(cfg: dict, args: argparse.Namespace) -> None:
    """Measure the training loader of a config and print the tables."""
    from mmengine.fileio import get
    from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope

    scope = cfg['default_scope']
    with contextlib.redirect_stdout(io.StringIO()):  # prints about an optional service
        importlib.import_module(f'{scope}.datasets')
    init_default_scope(scope)
    dataset_cfg = dict(cfg['train_dataloader']['dataset'], indices=args.images)
    dataset = DATASETS.build(dataset_cfg)
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]

    # As in a worker; and other threads, as they wait, would count as time of the steps after.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    steps = dataset_cfg['pipeline']
    pipelines = {
        name: [TRANSFORMS.build(step) for step in pipeline]
        for name, pipeline in (('stock', stock(steps)), ('ours', steps))
    }
    times = time_steps(pipelines, infos, args.rounds)
    totals = {
        name: [sum(values) for values in zip(*parts, strict=True)] for name, parts in times.items()
    }
    rows = []
    whole = statistics.median(totals['ours'])
    labels = [step['type'] for step in steps] + ['all']
    columns = [*zip(*times.values(), strict=True), tuple(totals.values())]
    for label, (theirs, ours) in zip(labels, columns, strict=True):
        middle = [statistics.median(values) for values in (theirs, ours)]
        rows.append([label, *(f'{value * 1e3:.2f}' for value in middle),
                     common.ratio(ours, theirs), f'{middle[1] / whole:.0%}'])
    common.show(f'steps of a training sample, {len(infos)} images, the same pixels',
                ['step', 'stock, ms', 'ours, ms', 'ratio', 'share of ours'], rows)

    files = [get(info['img_path']) for info in infos]
    decoders = time_decoders(files, args.rounds)
    base, _ = next(iter(decoders.values()))
    common.show('decoders', ['decoder', 'ms', 'ratio', 'grey levels off'], [
        [name, f'{statistics.median(values) * 1e3:.2f}', common.ratio(values, base), str(gap)]
        for name, (values, gap) in decoders.items()
    ], f'{sum(map(len, files)) / len(files) / 1e3:.0f} kB an image')

    ways = {}
    cuda = args.device.startswith('cuda')
    for workers in args.workers:
        for threads in args.cv2_threads:
            for prefetch in args.prefetch if workers else [None]:
                for pin in [False, True] if cuda else [False]:
                    loader = dict(
                        batch_size=args.batch, num_workers=workers, persistent_workers=workers > 0,
                        prefetch_factor=prefetch, pin_memory=pin, dataset=dataset,
                        sampler=dict(type='DefaultSampler', shuffle=False),
                    )  # fmt: skip
                    ways[workers, threads, prefetch, pin] = loader
    found = {way: [] for way in ways}
    for turn in range(args.rounds + 1):
        for way, loader in ways.items():
            values = epochs(loader, way[1], args.device)
            if turn:
                found[way].append(values)
    first = [whole for _, _, whole in next(iter(found.values()))]
    rows = []
    for (workers, threads, prefetch, pin), values in found.items():
        new, kept, whole = zip(*values, strict=True)
        speeds = [statistics.median(first) / value for value in whole]
        rows.append([
            str(workers), str(threads), str(prefetch or '-'), 'yes' if pin else 'no',
            f'{len(dataset) / statistics.median(whole):.0f}', common.ratio(speeds, [1.0]),
            *(f'{statistics.median(seconds):.2f}' for seconds in (new, kept)),
        ])  # fmt: skip
    common.show(
        f'loaders, {args.device}',
        ['workers', 'cv2 threads', 'prefetch', 'pinned', 'images/s', 'to the first row',
         'start, s', 'persistent, s'], rows,
        'start: to the first batch of a pass')  # fmt: skip
    common.write(args.json, args, {
        'steps': {name: dict(zip(labels, parts, strict=False)) for name, parts in times.items()},
        'decoders': decoders,
        'loaders': [dict(zip(('workers', 'cv2_threads', 'prefetch', 'pinned', 'seconds'),
                             (*way, values), strict=True)) for way, values in found.items()],
    })  # fmt: skip


if __name__ == '__main__':
    main(run)
