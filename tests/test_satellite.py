"""Satellite images: layouts of public sets, windows that are blended, scenes that go on."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from test_predict import save as save_model
from test_raster import write as write_tiff
from tool_helpers import tiny_folder, write_leaf
from utils import ROOT

import vpt_dense
from vpt_dense.errors import UserError
from vpt_dense.predicting import model as predicting
from vpt_dense.predicting.partial import Partial
from vpt_dense.segmentors import tiles
from vpt_dense.windows import Axis

RNG = np.random.default_rng(0)


# --- windows ---------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def seg(tmp_path_factory):
    folder = tmp_path_factory.mktemp('model')
    save_model(write_leaf(folder, tiny_folder(folder / 'data')), folder / 'c.pth')
    return folder


@pytest.mark.parametrize('size', [(70, 53), (32, 70), (50, 20)], ids=str)
def test_hann_is_the_mean_weighted_by_its_formula(seg, size):
    """In float64, window by window, at the size of the image."""
    predictor = vpt_dense.load(seg / 'c.pth', cfg_options={'model.test_cfg.blend': 'hann'})
    model = predictor.model.double()
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    meta = [dict(ori_shape=size, img_shape=size, pad_shape=size)]
    height, width = (min(32, length) for length in size)
    hann = [np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (height, width)]
    weights = torch.from_numpy(np.outer(*hann))
    total, divisor = 0, 0
    with torch.no_grad():
        found = model.slide_inference(image, meta)[0]
        for top in Axis.of(size[0], 32, 21).starts:
            for left in Axis.of(size[1], 32, 21).starts:
                crop = image[:, :, top:top + height, left:left + width]
                one = model.encode_decode(crop, [dict(meta[0], img_shape=torch.Size(
                    (height, width)))])[0]
                placed = torch.zeros(len(one) + 1, *size, dtype=torch.float64)
                placed[:-1, top:top + height, left:left + width] = one * weights
                placed[-1, top:top + height, left:left + width] = weights
                total, divisor = total + placed[:-1], divisor + placed[-1]
    # Weights are float32.
    torch.testing.assert_close(found, total / divisor, rtol=1e-5, atol=1e-5)
    plain = vpt_dense.load(seg / 'c.pth').model.double().slide_inference(image, meta)[0]
    assert size == (50, 20) or (plain - found).abs().max() > 1e-3 * found.abs().max()


@pytest.mark.parametrize('size', [(150, 131), (30, 131), (150, 32)], ids=str)
def test_tiles_are_blended_as_the_whole(seg, size, monkeypatch):
    predictor = vpt_dense.load(seg / 'c.pth', cfg_options={'model.test_cfg.blend': 'hann'})
    array = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
    expected = predictor.predict(array, probabilities=True)
    monkeypatch.setattr(predicting, 'PLAIN_PIXELS', 10)
    monkeypatch.setattr(tiles, '_TILE', 150 * 4 * 32 * 9)
    result = predictor.predict(array, probabilities=True)
    assert isinstance(result.probabilities, np.memmap)
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-6)


def test_a_way_to_blend_that_there_is_not(seg):
    with pytest.raises((UserError, ValueError), match='model.test_cfg.blend'):
        vpt_dense.load(seg / 'c.pth', cfg_options={'model.test_cfg.blend': 'gauss'})


# --- scenes ----------------------------------------------------------------------------------


def scene(path, size=(110, 70)):
    array = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
    write_tiff(path, array, crs='EPSG:32633', transform=from_origin(500000, 5300000, 10, 10))
    return path


def test_a_scene_goes_on_where_it_was_left(seg, tmp_path, monkeypatch):
    """Interrupted at every row of windows in turn; what was done is not done again."""
    path = scene(tmp_path / 'scene.tif')
    monkeypatch.setattr(predicting, 'PLAIN_PIXELS', 10)
    expected = vpt_dense.load(seg / 'c.pth').predict(str(path)).labels
    reads, done = [], Partial.done

    class Killed(KeyboardInterrupt):
        pass

    def stop(self, rows):
        done(self, rows)
        if rows < 110:
            raise Killed

    monkeypatch.setattr(Partial, 'done', stop)
    whole = tiles._band
    monkeypatch.setattr(tiles, '_band', lambda *args: reads.append(args[-1]) or whole(*args))
    for _ in range(50):
        predictor = vpt_dense.load(seg / 'c.pth')
        predictor.partial = tmp_path / 'partial'
        try:
            result = predictor.predict(str(path))
            break
        except Killed:
            continue
    starts = Axis.of(110, 32, 21).starts
    # A row of windows comes again for the pixels that the next one adds to, and no more.
    assert set(reads) == set(starts) and len(reads) <= 4 * len(starts)
    np.testing.assert_array_equal(result.labels, expected)
    assert sorted(file.suffix for file in (tmp_path / 'partial').iterdir()) == ['.json', '.labels']
    state, = (tmp_path / 'partial').glob('*.json')
    assert json.loads(state.read_text())['rows'] == 110

    other = vpt_dense.load(seg / 'c.pth', cfg_options={'model.test_cfg.stride': (16, 16)})
    other.partial = tmp_path / 'partial'
    reads.clear()
    with pytest.raises(Killed):
        other.predict(str(path))
    assert reads[0] == 0  # another way to predict begins anew


KILLED = """
import sys
from vpt_dense.predicting import model, partial
from vpt_dense import cli
model.PLAIN_PIXELS = 10
done = partial.Partial.done
flag = sys.argv[-1]
def slow(self, rows):
    done(self, rows)
    if rows > 30 and flag == 'wait':
        print('rows', rows, flush=True)
        import time; time.sleep(60)
partial.Partial.done = slow
from vpt_dense.commands import predict
predict.main(sys.argv[1:-1])
"""


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on(seg, tmp_path):
    path, out = scene(tmp_path / 'scene.tif'), tmp_path / 'out'
    command = [sys.executable, '-c', KILLED, str(seg / 'c.pth'), str(path), '--out', str(out)]
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    process = subprocess.Popen([*command, 'wait'], env=env, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith('rows'):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    state, = (out / '.partial').glob('*.json')
    assert json.loads(state.read_text())['rows'] > 30 and not list(out.glob('labels/*'))
    subprocess.run([*command, '--skip-existing', 'on'], env=env, check=True, capture_output=True)
    with rasterio.open(out / 'labels/scene.tif') as file, rasterio.open(path) as source:
        assert file.crs == source.crs and file.transform == source.transform
        labels = file.read(1)
    np.testing.assert_array_equal(labels, vpt_dense.load(seg / 'c.pth').predict(str(path)).labels)
    assert not (out / '.partial').exists()
    assert json.loads((out / 'summary.json').read_text())['finished']
