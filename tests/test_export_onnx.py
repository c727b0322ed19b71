"""Models as ONNX files: made, run by ONNX Runtime, in int8. Needs the extra `export`."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from map_data import write_recipe
from methods import BACKBONES, GRAPHS, build
from mmengine import Config
from test_export import HEADS, Outs, segmentor
from test_multi_task_training import TINY as TASKS_RECIPE
from test_multi_task_training import nyud
from test_raster import write as write_tiff
from test_several_tasks import MORE, SLIDE, TASKS
from tool_helpers import run_tool, write_leaf
from utils import CONFIGS, TINY_ARCH, images, make_ade_folder, randomise

import vpt_dense
from vpt_dense import building, config, safe_files
from vpt_dense.datasets import map_files, raster
from vpt_dense.deploy import card as cards
from vpt_dense.deploy import exporting, graphs, onnx_model
from vpt_dense.errors import UserError

onnx = pytest.importorskip('onnx')
runtime = pytest.importorskip('onnxruntime')

RESIZED = """
_steps = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(80, 40), keep_ratio=True),
    dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
val_dataloader = dict(dataset=dict(pipeline=_steps))
test_dataloader = dict(dataset=dict(pipeline=_steps))
"""
PADDED = "model['data_preprocessor']['test_cfg'] = dict(size_divisor=40)\n"
BANDS = """
dataset = dict(_delete_=True, type='vpt_dense.SegFolder', data_root='{root}', classes=['x', 'y'])
_load = dict(type='vpt_dense.LoadBands', mean=[90.0, 100.0, 110.0, 120.0][:{n}],
             std=[40.0, 50.0, 60.0, 70.0][:{n}], bands=[2, 3, 4, 5][:{n}])
_pack = dict(type='PackSegInputs')
train_dataloader['dataset'] = dict(pipeline=[_load, dict(type='vpt_dense.LoadMask'), _pack])
val_dataloader['dataset'] = test_dataloader['dataset'] = dict(pipeline=[_load, {resize} _pack])
model['data_preprocessor'].update(size=(32, 32), mean=None, std=None, bgr_to_rgb=False)
model['backbone']['in_channels'] = {n}
"""
ENLARGED = """
test_dataloader['dataset']['pipeline'].insert(1, dict(type='Resize', scale=(72, 40)))
"""
FOLDER = """
_base_ = '{base}'
dataset = dict(data_root='{root}')
model = dict(backbone=dict(
    arch=dict(_delete_=True, **{arch}), img_size=32, patch_size=8, init_cfg=None,
    prompt=dict(num_tokens=2)), head=dict(in_channels=64))
_steps = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=36, edge='short', interpolation='bilinear', backend='pillow'),
    dict(type='CenterCrop', crop_size=32), dict(type='PackInputs')]
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=_steps))
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=_steps))
"""


def checkpoint(leaf, path):
    """A checkpoint of a config with a value of its own in every parameter."""
    cfg = config.load(str(leaf))
    model = randomise(building.build_model(cfg))
    safe_files.write(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)), path)
    return str(path)


@pytest.fixture(scope='module')
def seg(tmp_path_factory):
    """A config, its checkpoint, and images of two sizes."""
    folder = tmp_path_factory.mktemp('seg')
    data = make_ade_folder(folder / 'data', size=(48, 64))
    image = cv2.imread(str(data / 'images/validation/000.jpg'))
    cv2.imwrite(str(folder / 'high.png'), cv2.resize(image, (50, 70)))
    leaf = write_leaf(folder, data)
    pictures = [str(p) for p in sorted((data / 'images/validation').glob('*'))]
    return leaf, checkpoint(leaf, folder / 'a.pth'), [*pictures, str(folder / 'high.png')]


@pytest.fixture(scope='module')
def cls(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cls')
    generator = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('cat', 'dog'):
            (folder / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = generator.integers(0, 256, (40 + i, 60, 3)).astype(np.uint8)
                cv2.imwrite(str(folder / split / name / f'{i}.png'), pixels)
    leaf = folder / 'leaf.py'
    leaf.write_text(FOLDER.format(
        base=CONFIGS / 'vpt/vit-b_deep_imagefolder.py', root=folder, arch=TINY_ARCH))
    pictures = sorted(map(str, (folder / 'val').rglob('*.png')))
    return leaf, checkpoint(leaf, folder / 'a.pth'), pictures


def both(leaf, path, out, pictures, capfd, *options):
    """What the checkpoint and its exported file predict."""
    done = run_tool(capfd, 'export', leaf, path, '--out', out, *options)
    assert done.code == 0, done.err
    assert 'difference from the model' in done.out
    model = vpt_dense.load(path, str(leaf))
    exported = onnx_model.load(out)
    assert exported.classes == model.classes and exported.ids == model.ids
    return [list(p.stream(pictures, probabilities=True)) for p in (model, exported)]


@pytest.mark.parametrize(('extra', 'options'), [
    ('', []),
    ('', ['--resize']),
    (RESIZED, ['--dynamic']),
    (RESIZED + "model['test_cfg'] = dict(_delete_=True, mode='whole')\n", ['--dynamic']),
    (PADDED, []),
    (RESIZED + PADDED, []),
], ids=['windows', 'windows, resized inside', 'resized images', 'whole images', 'padded',
        'resized and padded'])
def test_segmentation_is_the_models(capfd, tmp_path, seg, extra, options):
    leaf, path, pictures = seg
    if extra:
        leaf = tmp_path / 'leaf.py'
        leaf.write_text(seg[0].read_text() + extra)
        path = checkpoint(leaf, tmp_path / 'a.pth')
    wanted, found = both(leaf, path, tmp_path / 'a.onnx', pictures, capfd, *options)
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(other.probabilities, one.probabilities, atol=1e-5)
        assert other.labels.dtype == one.labels.dtype
        assert (other.labels != one.labels).mean() < 1e-3


@pytest.mark.parametrize('number', [3, 4])
@pytest.mark.parametrize('size', [None, (80, 40)], ids=['windows', 'resized'])
def test_bands_are_read_as_the_model_reads_them(capfd, tmp_path, number, size):
    resize = f"dict(type='Resize', scale={size}, keep_ratio=True)," if size else ''
    leaf = write_leaf(tmp_path, tmp_path, BANDS.format(root=tmp_path, n=number, resize=resize))
    path = checkpoint(leaf, tmp_path / 'a.pth')
    values = np.random.default_rng(0).uniform(0, 200, (90, 70, number + 1)).astype(np.float32)
    values[:40, :40] = -9
    raster.write_raster(tmp_path / 'a.tif', values, nodata=-9)
    wanted, found = both(leaf, path, tmp_path / 'a.onnx', [str(tmp_path / 'a.tif')], capfd,
                         '--dynamic')
    assert (found[0].labels[:40, :40] == 255).all() and found[0].ignored_id == 255
    assert set(np.unique(found[0].labels[40:])) == {0, 1}
    assert (found[0].labels != wanted[0].labels).mean() < 1e-3
    np.testing.assert_allclose(found[0].probabilities, wanted[0].probabilities, atol=1e-5)


@pytest.mark.parametrize('profile', [dict(nbits=1), dict(photometric='miniswhite')], ids=str)
def test_a_raster_is_what_the_loader_gives(capfd, tmp_path, seg, profile):
    """OpenCV makes 255 of the 1 of a bit, and black of what is white as 0."""
    leaf, path, _ = seg
    stored = np.random.default_rng(0).integers(0, 2, (50, 60, 1)).astype(np.uint8)
    write_tiff(tmp_path / 'a.tif', stored * (1 if 'nbits' in profile else 200), **profile)
    wanted, found = both(leaf, path, tmp_path / 'a.onnx', [str(tmp_path / 'a.tif')], capfd)
    np.testing.assert_allclose(found[0].probabilities, wanted[0].probabilities, atol=1e-5)


@pytest.mark.parametrize('size', [(150, 131), (30, 131), (150, 32), (70, 20)], ids=str)
@pytest.mark.parametrize('extra', ['', RESIZED], ids=['windows', 'resized'])
def test_tiles_are_the_whole(capfd, tmp_path, seg, monkeypatch, size, extra):
    """A few rows and columns at a time, kept in files, from a raster by rows."""
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(seg[0].read_text() + extra)
    array = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    raster.write_raster(tmp_path / 'a.tif', array)
    cv2.imwrite(str(tmp_path / 'a.png'), array[..., ::-1])
    monkeypatch.setattr(onnx_model, '_TILE', 150 * 4 * 32 * 9)
    monkeypatch.setattr(onnx_model, '_IN_MEMORY', 100)
    pictures = [str(tmp_path / name) for name in ('a.tif', 'a.png')]
    wanted, found = both(leaf, checkpoint(leaf, tmp_path / 'a.pth'), tmp_path / 'a.onnx', pictures,
                         capfd, '--dynamic')
    for one, other in zip(wanted, found, strict=True):
        assert isinstance(other.probabilities, np.memmap)
        np.testing.assert_allclose(other.probabilities, one.probabilities, atol=1e-3)
        assert (other.labels != one.labels).mean() < 1e-3


def test_classification_is_the_models(capfd, tmp_path, cls):
    leaf, path, pictures = cls
    wanted, found = both(leaf, path, tmp_path / 'a.onnx', pictures, capfd)
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(other.probabilities, one.probabilities, atol=1e-5)
        assert (other.name, other.label) == (one.name, one.label)


def test_a_classifier_that_gives_labels_has_no_scores(capfd, tmp_path, cls):
    leaf, path, pictures = cls
    out = tmp_path / 'a.onnx'
    done = run_tool(capfd, 'export', leaf, path, '--out', out, '--resize')
    assert done.code == 2 and '--resize is for segmentation' in done.err
    assert run_tool(capfd, 'export', leaf, path, '--out', out, '--argmax').code == 0
    done = run_tool(capfd, 'predict', out, *pictures, '--out', tmp_path / 'p')
    assert done.code == 2 and 'gives labels, no probabilities' in done.err
    assert not (tmp_path / 'p').exists()


def test_what_a_file_says_of_itself(capfd, tmp_path, seg):
    leaf, path, _ = seg
    out = tmp_path / 'a.onnx'
    assert run_tool(capfd, 'export', leaf, path, '--out', out, '--argmax').code == 0
    model = onnx.load(out)
    onnx.checker.check_model(model)
    card = json.loads({p.key: p.value for p in model.metadata_props}[cards.KEY])
    assert card['task'] == 'segmentation' and len(card['classes']) == 150
    assert card['reduce_zero_label'] and card['ids'] == list(range(1, 151))
    assert card['input'] == dict(
        name='images', layout='NCHW', dtype='float32', channels=3, order='RGB', size=[32, 32],
        range='0 to 255; mean and standard deviation are inside the graph')
    assert card['test'] == dict(mode='slide', crop_size=[32, 32], stride=[21, 21])
    assert [step['type'] for step in card['pipeline']] == ['LoadImageFromFile']
    (images_,), (labels,) = model.graph.input, model.graph.output
    assert [d.dim_param or d.dim_value for d in images_.type.tensor_type.shape.dim] == [
        'batch', 3, 32, 32]
    session = runtime.InferenceSession(out)
    (got,) = session.run(None, {'images': np.zeros((2, 3, 32, 32), np.float32)})
    assert labels.name == 'labels' and got.shape == (2, 32, 32) and got.dtype == np.int64


def test_the_tool_predicts_with_it(capfd, tmp_path, seg):
    leaf, path, pictures = seg
    out = tmp_path / 'a.onnx'
    assert run_tool(capfd, 'export', path, '--out', out).code == 0
    folders = [tmp_path / 'one', tmp_path / 'other']
    for source, folder in zip((path, out), folders, strict=True):
        assert run_tool(capfd, 'predict', source, *pictures, '--out', folder).code == 0
    for one in (folders[0] / 'labels').rglob('*.png'):
        other = cv2.imread(str(folders[1] / one.relative_to(folders[0])), -1)
        assert (cv2.imread(str(one), -1) != other).mean() < 1e-3
    record = json.loads((folders[1] / 'summary.json').read_text())
    assert record['exported_from']['checkpoint'] == 'a.pth' and record['predicted'] == 3


@pytest.mark.parametrize('task', ['seg', 'cls'])
def test_int8(capfd, tmp_path, request, task):
    leaf, path, pictures = request.getfixturevalue(task)
    out = tmp_path / 'a.onnx'
    done = run_tool(capfd, 'export', leaf, path, '--out', out, '--quantize', 'int8',
                    '--calibrate', 4)
    assert done.code == 0, done.err
    key = 'mIoU' if task == 'seg' else 'accuracy/top1'
    number = 2 if task == 'seg' else 6
    for kind in ('float32', 'int8'):
        (line,) = [line for line in done.out.splitlines() if line.startswith(f'{kind}:')]
        assert key in line and f'({number} validation images' in line
    assert {p.name for p in tmp_path.iterdir()} == {'a.onnx'}
    exported = onnx_model.load(out)
    assert exported.card['quantized'] == 'int8'
    wanted = list(vpt_dense.load(path, str(leaf)).stream(pictures, True))
    for one, other in zip(wanted, exported.stream(pictures, True), strict=True):
        np.testing.assert_allclose(other.probabilities, one.probabilities, atol=0.15)


def test_a_file_that_differs_is_not_kept(capfd, tmp_path, seg, monkeypatch):
    monkeypatch.setattr(graphs, 'TOLERANCE', -1)
    done = run_tool(capfd, 'export', seg[1], '--out', tmp_path / 'out/a.onnx')
    (line,) = done.err.splitlines()
    assert done.code == 2 and 'is not written: largest difference' in line
    assert list((tmp_path / 'out').iterdir()) == []


@pytest.mark.parametrize(('options', 'said'), [
    (['--out', 'a.tflite'], '--format tflite is not known; the formats are onnx, pt2'),
    (['--out', 'there.onnx'], 'there.onnx is there already'),
    (['--out', 'a.onnx', '--format', 'pt2'], 'give a file of format pt2 the ending .pt2'),
    (['--out', 'a.onnx', '--size', '64', '64'], 'the windows of model.test_cfg.crop_size are 32x'),
    (['--out', 'a.onnx', '--size', '64', '64', '--dynamic'], '--dynamic any'),
    (['--out', 'a.pt2', '--quantize', 'int8'], '--quantize int8 is for --format onnx'),
    (['--out', 'a.onnx', '--calibrate', '8'], '--calibrate is for --quantize int8'),
    (['--out', 'a.onnx', '--calibration-images', '.'], '--calibration-images is for --quantize'),
    (['--out', 'a.onnx', '--quantize', 'int4'], '--quantize int4 is not known; there is int8'),
])
def test_the_tool_refuses(capfd, tmp_path, seg, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there.onnx').write_text('mine')
    done = run_tool(capfd, 'export', seg[1], *options)
    (line,) = done.err.splitlines()
    assert done.code == 2 and said in line
    assert [p.name for p in tmp_path.iterdir()] == ['there.onnx']
    assert (tmp_path / 'there.onnx').read_text() == 'mine'


def test_predicting_refuses(capfd, tmp_path, seg):
    leaf, path, pictures = seg
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node('Relu', ['x'], ['y'])], 'g',
        [onnx.helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, [1])],
        [onnx.helper.make_tensor_value_info('y', onnx.TensorProto.FLOAT, [1])])
    onnx.save(onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid('', 17)], ir_version=9),
        str(tmp_path / 'other.onnx'))
    (tmp_path / 'bad.onnx').write_text('no model')
    out = tmp_path / 'a.onnx'
    assert run_tool(capfd, 'export', path, '--out', out).code == 0
    for arguments, said in [
        ([tmp_path / 'other.onnx'], 'was not made by tools/export.py'),
        ([tmp_path / 'bad.onnx'], 'is no model that ONNX Runtime can run'),
        ([tmp_path / 'none.onnx'], 'no file'),
        ([leaf, out], 'CONFIG is for checkpoints'),
        ([out, '--tta'], '--tta is for checkpoints'),
        ([tmp_path / 'a.pt2'], 'is a graph for torch.export.load'),
    ]:
        done = run_tool(capfd, 'predict', *arguments, *pictures, '--out', tmp_path / 'p')
        assert done.code == 2 and said in done.err.splitlines()[-1], done.err
    small = str(tmp_path / 'small.png')
    cv2.imwrite(small, np.zeros((20, 40, 3), np.uint8))
    broken = str(tmp_path / 'broken.png')
    (tmp_path / 'broken.png').write_bytes(b'\x89PNG')
    errors = list(onnx_model.load(out).stream([small, broken]))
    assert 'small.png: ' in str(errors[0]) and 'export with --dynamic' in str(errors[0])
    assert broken in str(errors[1]) and 'cannot be read' in str(errors[1])


def test_a_pipeline_that_is_not_known_here(seg):
    steps = Config.fromfile(seg[0]).test_dataloader.dataset.pipeline
    assert cards.pipeline_of(steps) == (
        [dict(type='LoadImageFromFile', to_float32=False)], None)
    for step, said in [
        (dict(type='Pad', size=(1, 1)), 'it has Pad'),
        (dict(type='Resize', scale=(1, 1), clip=True), 'Resize has clip=True'),
    ]:
        assert cards.pipeline_of([*steps, step])[1] == said
    pack = [dict(type='PackSegInputs')]
    assert cards.pipeline_of(pack)[1] == 'it does not begin with LoadImageFromFile or LoadBands'


@pytest.mark.parametrize(('kind', 'key'), [('UperNet', 'model.decode_head'), ('SETR', None)])
def test_dynamic_sizes_that_onnx_has_not(mmseg_scope, kind, key):
    class Predictor:
        task = 'segmentation'
        model = segmentor(kind)

    if key is None:
        exporting.check(Predictor, True, 'onnx')
        return
    with pytest.raises(UserError, match=rf'{key}.* --format pt2'):
        exporting.check(Predictor, True, 'onnx')
    exporting.check(Predictor, True, 'pt2')


def test_a_full_disk(capfd, small_disk, seg):
    (small_disk / 'filler').write_bytes(b'x' * 950_000)
    done = run_tool(capfd, 'export', seg[1], '--out', small_disk / 'a.onnx')
    (line,) = done.err.splitlines()
    assert done.code == 2 and 'full' in line
    assert [p.name for p in small_disk.iterdir()] == ['filler']


def run_onnx(model, size, tolerance=1e-4):
    """ONNX Runtime computes what the model does, of batches that the graph was not made with."""
    module = Outs(model.eval())
    with torch.no_grad():
        program = exporting.graph(module, 3, size, dynamic=False)
        names = [f'out{i}' for i in range(len(program.graph_signature.user_outputs))]
        made = torch.onnx.export(program, dynamo=True, input_names=['images'], output_names=names,
                                 verbose=False).model_proto
        session = runtime.InferenceSession(made.SerializeToString())
        for number in (1, 3):
            x = images(number, 3, *size, seed=number)
            wanted = module(x)
            wanted = [wanted] if isinstance(wanted, torch.Tensor) else wanted
            for one, other in zip(wanted, session.run(None, {'images': x.numpy()}), strict=True):
                scale = one.abs().max().item()
                torch.testing.assert_close(
                    torch.from_numpy(other), one, rtol=0, atol=tolerance * scale)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'family', 'task'), GRAPHS)
def test_every_method_on_every_backbone(name, family, task):
    run_onnx(build(name, family, task), BACKBONES[family].size)


@pytest.mark.slow
@pytest.mark.parametrize('kind', HEADS)
def test_heads_of_segmentation(mmseg_scope, kind):
    run_onnx(segmentor(kind), (32, 32))


def of_maps(folder, what, more=''):
    """A tiny recipe of depth or normals, its checkpoint with a method, and its images."""
    file = write_recipe(folder, f'linear_vit-s_dinov2_{what}folder', more=more)
    cfg = config.load(str(file), {}, 'deep')
    model = randomise(building.build_model(cfg))
    path = folder / 'a.pth'
    safe_files.write(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)), path)
    return str(path), sorted(map(str, (folder / 'data/images/validation').glob('*')))


@pytest.mark.parametrize(
    'options', [['--dynamic'], ['--dynamic', '--resize']], ids=['head', 'resized'])
@pytest.mark.parametrize('what', ['depth', 'normal'])
def test_maps_are_the_models(capfd, tmp_path, what, options):
    path, pictures = of_maps(tmp_path, what)
    out = tmp_path / 'a.onnx'
    done = run_tool(capfd, 'export', path, '--out', out, *options)
    assert done.code == 0, done.err
    model, exported = vpt_dense.load(path), onnx_model.load(str(out))
    wanted, found = (list(each.stream(pictures)) for each in (model, exported))
    assert len(found) == len(pictures) > 0
    for one, other in zip(wanted, found, strict=True):
        name = 'depth' if what == 'depth' else 'normals'
        a, b = getattr(one, name), getattr(other, name)
        assert a.shape == b.shape and a.std() > 1e-3
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
        if what == 'depth':
            assert (one.scale, one.farthest) == (other.scale, other.farthest)
    if '--resize' in options:  # unit vectors are not averaged
        exported.card['test'] = dict(mode='slide', crop_size=[32, 32], stride=[16, 16])
        first = next(exported.stream(pictures))
        refused = isinstance(first, UserError) and 'export without --resize' in str(first)
        assert refused == (what == 'normal')
        return
    for source, folder in ((path, 'eager'), (out, 'onnx')):
        done = run_tool(capfd, 'predict', source, *pictures, '--out', tmp_path / folder)
        assert done.code == 0, done.err
    task = exported.task
    files = sorted(p.name for p in (tmp_path / 'eager' / task).iterdir())
    assert files == sorted(p.name for p in (tmp_path / 'onnx' / task).iterdir()) != []
    for name in files:
        a, b = (map_files.read_map(tmp_path / folder / task / name)
                for folder in ('eager', 'onnx'))
        np.testing.assert_allclose(b.astype(float), a.astype(float), atol=1)  # a unit of a PNG


def test_maps_of_earlier_versions_are_refused(capfd, tmp_path):
    path, _ = of_maps(tmp_path, 'depth')
    out = tmp_path / 'a.onnx'
    assert run_tool(capfd, 'export', path, '--out', out).code == 0
    proto = onnx.load(out)
    (entry,) = [p for p in proto.metadata_props if p.key == 'vpt_dense']
    card = json.loads(entry.value)
    del card['maps']
    entry.value = json.dumps(card)
    onnx.save(proto, out)
    with pytest.raises(UserError, match='what its maps of depth are.*export it again'):
        onnx_model.load(str(out))


@pytest.mark.parametrize(('options', 'slides'), [
    (['--dynamic'], False), ([], True)], ids=['any size', 'windows'])
def test_several_tasks_are_the_models(capfd, tmp_path, options, slides):
    """An output for each task; predicted, resized and put over windows as the model does it."""
    nyud(tmp_path / 'data')
    file = tmp_path / 'recipe.py'
    file.write_text(TASKS_RECIPE.format(
        configs=CONFIGS, root=tmp_path, recipe='nyud', kind='fixed') + MORE + (
            SLIDE if slides else ENLARGED))
    cfg = config.load(str(file), {}, 'task-prompts')
    path, out = str(tmp_path / 'a.pth'), tmp_path / 'a.onnx'
    safe_files.write(dict(state_dict=randomise(building.build_model(cfg)).state_dict(),
                          meta=dict(cfg=cfg.pretty_text)), path)
    done = run_tool(capfd, 'export', path, '--out', out, *options)
    assert done.code == 0, done.err
    names = [each.name for each in onnx.load(out).graph.output]
    assert names == list(TASKS)
    pictures = sorted(map(str, (tmp_path / 'data/images').glob('*')))
    model, exported = vpt_dense.load(path), onnx_model.load(str(out))
    assert exported.of_tasks == model.of_tasks
    runs, run = [], exported._session.run
    exported._session = SimpleNamespace(run=lambda *given: runs.append(0) or run(*given))
    for one, other in zip(model.stream(pictures), exported.stream(pictures), strict=True):
        for name, key in dict(depth='depth', distance='distance', edges='edges',
                              normals='normals').items():
            a, b = getattr(one[name], key), getattr(other[name], key)
            assert a.shape == b.shape and a.std() > 1e-3
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
        assert one['distance'].size == other['distance'].size
        assert (one['seg'].labels != other['seg'].labels).mean() < 1e-3
    rows = 2 if slides else 1  # of windows: each passes the graph once for all tasks
    assert len(runs) == rows * len(pictures)
    for source, folder in ((path, 'eager'), (out, 'onnx')):
        done = run_tool(capfd, 'predict', source, *pictures, '--out', tmp_path / folder)
        assert done.code == 0, done.err
    files = [sorted(str(p.relative_to(tmp_path / folder)) for p in (tmp_path / folder).rglob('*'))
             for folder in ('eager', 'onnx')]
    assert files[0] == files[1] and len(files[0]) == 1 + 5 * (2 + len(pictures))
    assert str(next(exported.stream(pictures, True))).endswith('are for models of one task')
    refused = run_tool(capfd, 'export', path, '--out', tmp_path / 'no.onnx', '--quantize', 'int8')
    assert refused.code and 'this model is of multitask' in refused.err
