"""Memory and time of predicting one large GeoTIFF, as ``vpt-dense predict`` does it.

``python tools/benchmark/scene.py --pixels 8000 20000``

The model is tiny (width 32, 2 blocks), so that what the way of predicting takes is seen: a linear
head of 2 classes, windows of 518 with --stride. Each scene is made, and predicted in a process of
its own, in the folder for temporary files; 3 bytes a pixel are needed there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vpt_dense import outputs, safe_files, tables
from vpt_dense.errors import ArgumentParser, UserError, count, main

CONFIG = """
_base_ = 'vpt_dense::linear_vit-s_dinov2_segfolder'
dataset = dict(classes=['a', 'b'])
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
        out_indices=[1], init_cfg=None),
    decode_head=dict(in_channels=32),
    test_cfg=dict(stride=({stride}, {stride}), blend='{blend}'))
_test = [
    dict(type='LoadImageFromFile'), dict(type='vpt_dense.LoadMask'), dict(type='PackSegInputs')]
test_dataloader = dict(dataset=dict(pipeline=_test))
"""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--pixels', type=count, nargs='+', default=[8000], help='of a side of each scene')
    add('--stride', type=count, default=384, help='of windows of 518 pixels')
    add('--blend', choices=['mean', 'hann'], default='hann')
    add('--json', type=outputs.new_file, metavar='FILE', help='also write all figures here')
    add('--child', help=argparse.SUPPRESS)
    return parser.parse_args()


def make_scene(path: Path, pixels: int) -> None:
    """Write a scene of random blocks, strip by strip."""
    import rasterio
    from rasterio.transform import from_origin

    block = np.random.default_rng(0).integers(0, 256, (3, 256, pixels), dtype=np.uint8)
    with rasterio.open(
            path, 'w', driver='GTiff', height=pixels, width=pixels, count=3, dtype='uint8',
            crs='EPSG:32633', transform=from_origin(0, 0, 10, 10), tiled=True, blockxsize=256,
            blockysize=256, bigtiff='if_safer') as file:
        for top in range(0, pixels, 256):
            rows = min(256, pixels - top)
            file.write(np.roll(block, top // 3, axis=2)[:, :rows],
                       window=((top, top + rows), (0, pixels)))


def child(folder: Path) -> None:
    """Predict the scene of a folder; print seconds and bytes as JSON."""
    from vpt_dense.commands import predict
    from vpt_dense.machine import resident_peak

    before = resident_peak()
    started = time.perf_counter()
    predict.main([str(folder / 'c.pth'), str(folder / 'scene.tif'), '--out', str(folder / 'out')])
    seconds = time.perf_counter() - started
    print(json.dumps(dict(seconds=seconds, before=before, peak=resident_peak())))


def measure(args: argparse.Namespace, pixels: int) -> dict[str, float]:
    """Make a scene and predict it."""
    from vpt_dense import building, config

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'c.py').write_text(CONFIG.format(stride=args.stride, blend=args.blend))
        cfg = config.load(str(folder / 'c.py'), None, 'head')
        state = building.build_model(cfg).state_dict()
        safe_files.write(dict(state_dict=state, meta=dict(cfg=cfg.pretty_text)), folder / 'c.pth')
        make_scene(folder / 'scene.tif', pixels)
        done = subprocess.run([sys.executable, __file__, '--child', name], text=True,
                              capture_output=True, check=False)
        if done.returncode:
            raise UserError(f'predicting {pixels} x {pixels} pixels: {done.stderr[-1000:]}')
        found = json.loads(done.stdout.splitlines()[-1])
        labels = folder / 'out/labels/scene.tif'
        return dict(pixels=pixels, **found, labels_megabytes=labels.stat().st_size / 1e6)


def run() -> None:
    """Measure and print a table."""
    args = parse_args()
    if args.child:
        child(Path(args.child))
        return
    found = [measure(args, pixels) for pixels in args.pixels]
    rows = [[f'{each["pixels"]:,}', f'{each["peak"] / 2**20:,.0f}', f'{each["seconds"]:,.0f}',
             f'{each["pixels"] ** 2 / each["seconds"] / 1e6:.1f}'] for each in found]
    tables.show(['side, pixels', 'peak of the process, MiB', 'seconds', 'million pixels/s'], rows,
                f'windows of 518, stride {args.stride}, {args.blend}')
    if args.json:
        safe_files.write_text(args.json, json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main(run)
