"""The distribution: metadata, contents, what an import costs, names in the registries."""

import ast
import configparser
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from processes import warm
from test_inference import CASES, SEG, images
from tool_helpers import write_leaf

import vpt_dense

ROOT = Path(__file__).resolve().parent.parent
#: What a wheel holds beside the package, in vpt_dense/.mim.
RIDING = ('configs', 'pretrain', 'samples', 'tools')


def run_python(code, *args):
    """Run code in a fresh interpreter, away from the repository; return what it printed."""
    done = subprocess.run(
        [sys.executable, '-c', code, *args], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def run_warm(tmp_path_factory):
    """Run code as :func:`run_python` does, where torch, mmcv and mmengine are imported already."""
    begin = 'import mmcv.transforms, mmengine.runner, torchvision\n'
    with warm(begin, tmp_path_factory.mktemp('warm'), cwd=ROOT.parent) as start:

        def run(code, *args):
            done = start(code, *args)
            assert done.returncode == 0, done.stderr
            return done.stdout

        yield run


def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path):
    """As beside a clone: python would make an empty package of the folder."""
    (tmp_path / 'vpt_dense').mkdir()
    done = subprocess.run(
        [sys.executable, '-c', 'import vpt_dense; print(vpt_dense.__version__)'],
        capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == vpt_dense.__version__, done.stderr


def requirements(name):
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line.split('#')[0].strip() for line in lines if line.split('#')[0].strip()]


def canonical(requirement):
    """'A>=1,<2; marker' -> ('A', {'>=1', '<2'}), as metadata orders the ranges otherwise."""
    name, ranges = re.match(r'([\w.-]+)([^;]*)', requirement).groups()
    return name, frozenset(part.strip() for part in ranges.split(',') if part.strip())


def imported(path):
    """Top-level names of the modules that a file imports, anywhere in it."""
    yield from _imported(ast.parse(path.read_text()))


def _imported(node):
    """Of statements alone, which is a tenth of all nodes."""
    if isinstance(node, ast.Import):
        yield from (alias.name.split('.')[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        yield node.module.split('.')[0]
    for field in ('body', 'orelse', 'finalbody', 'handlers', 'cases'):
        inside = getattr(node, field, None)
        for child in inside if isinstance(inside, list) else ():
            yield from _imported(child)


@pytest.mark.parametrize(
    ('module', 'absent'),
    [
        ('vpt_dense', ['mmengine', 'torch', 'mmcv', 'mmseg', 'mmpretrain']),
        ('vpt_dense.registry', ['torch', 'mmcv', 'mmseg', 'mmpretrain']),
    ],
)
def test_import_is_light(module, absent):
    code = f'import sys, {module}; print([m for m in {absent} if m in sys.modules])'
    assert run_python(code).strip() == '[]'


LIST_NAMES = """
import json, sys
import vpt_dense.registry as ours
names = {}
for kind in ours.__all__:
    registry = getattr(ours, kind)
    registry.import_from_location()
    names[kind] = sorted({*registry.module_dict, *registry.on_demand})
assert not [name for name in sys.modules if name.startswith('vpt_dense.demo')]
print(json.dumps(names))
"""

# Looks names up as a runner does: from the registry of the default scope, vpt_dense not imported.
RESOLVE = """
import importlib, json, sys
scope, names = sys.argv[1], json.loads(sys.argv[2])
from mmengine.registry import init_default_scope
registries = importlib.import_module(f'{scope}.registry')
init_default_scope(scope)
assert 'vpt_dense' not in sys.modules
for kind, types in names.items():
    for name in types:
        cls = getattr(registries, kind).get(f'vpt_dense.{name}')
        alias = dict(PromptedVisionTransformer='VisionTransformer')
        assert cls is not None and cls.__name__ == alias.get(name, name), (kind, name, cls)
        assert cls.__module__.startswith('vpt_dense.'), (kind, name, cls)
"""


def test_a_backbone_alone_does_not_need_mmseg(run_warm):
    code = ("import sys; from mmengine.registry import MODELS; "
            "assert MODELS.get('vpt_dense.VisionTransformer'); "
            "print('mmseg' in sys.modules)")
    assert run_warm(code).splitlines()[-1] == 'False'


@pytest.fixture(scope='module')
def registered(run_warm):
    return json.loads(run_warm(LIST_NAMES).splitlines()[-1])


def test_every_registry_holds_something(registered):
    assert [kind for kind, names in registered.items() if not names] == []


#: Classes on those of mmdet, an extra.
NEED_MMDET = (
    'BoxesHook', 'CocoFolder', 'CocoMetric', 'DetLocalVisualizer', 'EoMTInstanceHead',
    'EoMTPanopticHead', 'LoadPanopticAnnotations', 'Mask2FormerHead', 'PanopticFolder',
    'PanopticMetric', 'PlainMaskInstanceHead', 'PlainMaskPanopticHead', 'QueryDetector',
    'SegmentsHook')


@pytest.mark.parametrize('scope', ['mmengine', 'mmseg', 'mmpretrain'])
def test_registered_types_resolve_by_scoped_name(scope, registered, run_warm):
    absent = () if importlib.util.find_spec('mmdet') else NEED_MMDET
    names = {kind: [name for name in names if name not in absent]
             for kind, names in registered.items()}
    run_warm(RESOLVE, scope, json.dumps(names))


def test_a_script_of_ones_own_trains(tmp_path, run_warm):
    """mmengine's ``Config.fromfile`` and ``Runner.from_cfg``, where nothing of ours is imported."""
    root, (bands, dtype, load, mean) = tmp_path / 'data', CASES['plain']
    for split in ('training', 'validation'):
        images(root / f'images/{split}', bands, dtype)
        (root / f'annotations/{split}').mkdir(parents=True)
        for i in range(2):
            cv2.imwrite(str(root / f'annotations/{split}/{i}.png'), np.eye(32, dtype=np.uint8))
    leaf = write_leaf(tmp_path, root, SEG.format(root=root, load=load, mean=mean, bands=bands))
    told = run_warm(
        'from mmengine.config import Config; from mmengine.runner import Runner; import sys\n'
        'runner = Runner.from_cfg(Config.fromfile(sys.argv[1]))\n'
        'assert runner.model.decode_head.num_classes == 2\n'
        'runner.train()', leaf)
    assert 'mIoU' in told


def test_version_is_the_same_everywhere():
    assert importlib.metadata.version('vpt-dense') == vpt_dense.__version__
    assert vpt_dense.__version__ in (ROOT / 'CHANGELOG.md').read_text()
    citation = (ROOT / 'CITATION.cff').read_text()
    assert f'\nversion: {vpt_dense.__version__}\n' in citation


def test_requirements_reach_the_metadata():
    required = importlib.metadata.requires('vpt-dense')
    by_extra = {'': set()}
    for requirement in required:
        extra = re.search(r'extra == ["\']([\w-]+)["\']', requirement)
        by_extra.setdefault(extra.group(1) if extra else '', set()).add(canonical(requirement))
    expected = {'': {canonical(r) for n in ('runtime', 'mminstall') for r in requirements(n)}}
    for extra in ('tests', 'docs', 'medical', 'export', 'optional', 'search', 'analysis', 'slurm',
                  'ray', 'clip', 'federated', 'detection', 'peft', 'serve',
                  'client', 'label-studio', 'torchgeo'):
        expected[extra] = {canonical(r) for r in requirements(extra)}
    assert by_extra == expected


def test_installed_versions_are_in_range():
    """pip does not look at what a user installed by hand afterwards."""
    packaging = pytest.importorskip('packaging.requirements')
    for name in ('runtime', 'mminstall', 'tests'):
        for line in requirements(name):
            requirement = packaging.Requirement(line)
            version = importlib.metadata.version(requirement.name)
            assert requirement.specifier.contains(version, prereleases=True), (line, version)


def modules_of(distribution: str) -> set[str]:
    """The names that one may import of it; metadata.packages_distributions reads all that there is.
    """
    record = importlib.metadata.distribution(distribution).read_text('RECORD') or ''
    tops = {line.partition(',')[0].partition('/')[0] for line in record.splitlines()}
    return {top.partition('.')[0] for top in tops if '-' not in top}


def test_imports_are_declared():
    """Whatever the package and its tools import is the standard library's, ours, or required."""
    # Imported where they are needed.
    extras = ('medical', 'export', 'search', 'analysis', 'slurm', 'ray', 'clip', 'federated',
              'detection', 'serve', 'client', 'label-studio', 'torchgeo')
    # Those that are not installed here have the names of their packages.
    allowed = {'vpt_dense', 'mmdet', *sys.stdlib_module_names}
    for name in ('runtime', 'mminstall', *extras):
        for distribution in (canonical(r)[0] for r in requirements(name)):
            allowed.add(distribution)
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                allowed |= modules_of(distribution)
    undeclared = {}
    for path in [*(ROOT / 'vpt_dense').rglob('*.py'), *(ROOT / 'tools').glob('*.py')]:
        for module in set(imported(path)) - allowed:
            if not path.with_name(f'{module}.py').is_file():  # a tool that uses another tool
                undeclared[module] = str(path.relative_to(ROOT))
    assert undeclared == {}


@pytest.mark.long
def test_the_wheel_works_alone(tmp_path):
    """Built in an isolated environment, which pip fetches setuptools for; run in a bare folder."""
    source = tmp_path / 'source'
    source.mkdir()
    for name in ('setup.cfg', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'README.md',
                 'model-index.yml'):
        shutil.copy(ROOT / name, source)
    for name in ('vpt_dense', 'requirements', *RIDING):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for path in (source / 'pretrain').iterdir():  # what was fetched into a checkout stays there
        if path.name not in ('README.md', 'vit-demo_formula.safetensors'):
            path.unlink()
    (source / 'pretrain/theirs.pth').write_text('of others')
    pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps']
    subprocess.run([*pip, '--wheel-dir', tmp_path, source], check=True)
    (wheel,) = tmp_path.glob('*.whl')
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith('vpt_dense/')}
    ours = {str(p.relative_to(source)) for p in source.glob('vpt_dense/**/*') if p.is_file()}
    with_it = {f'vpt_dense/.mim/{p.relative_to(source)}' for name in RIDING
               for p in (source / name).rglob('*') if p.is_file() and 'tools/dev' not in str(p)
               and p.name != 'theirs.pth'}
    with_it.add('vpt_dense/.mim/model-index.yml')
    assert packed == {n for n in ours if '.egg-info' not in n} | with_it
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert wheel.name.startswith(f'{config["metadata"]["name"].replace("-", "_")}-')

    zipfile.ZipFile(wheel).extractall(tmp_path / 'site')
    (tmp_path / 'bare').mkdir()

    def call(*arguments):
        done = subprocess.run(
            [sys.executable, '-m', 'vpt_dense', *map(str, arguments)], capture_output=True,
            text=True, cwd=tmp_path / 'bare',
            env={**os.environ, 'PYTHONPATH': str(tmp_path / 'site')})
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert 'federated' in call('--help')
    assert '"trainable": 13389400' in call(
        'count', 'vpt_dense::setr_vit-l_ade20k', '--method', 'deep', '--json')
    call('make-dataset', 'digits', 'data/digits')
    weights = tmp_path / 'site/vpt_dense/.mim/pretrain/vit-demo_formula.safetensors'
    call('train', 'vpt_dense::setr_digits', '--method', 'lora', '--cfg-options',
         'train_cfg.max_iters=2', 'train_cfg.val_interval=100', 'train_dataloader.num_workers=0',
         'train_dataloader.persistent_workers=False',
         f'model.backbone.init_cfg.checkpoint={weights}')
    assert (tmp_path / 'bare/work_dirs/setr_digits_lora/summary.json').is_file()


@pytest.mark.slow
@pytest.mark.parametrize('first', ['', 'import mmpretrain\n'])
def test_mmpretrain_beside_pycocotools_and_new_transformers(tmp_path, first, run_warm):
    """Its multimodal models, imported with both, do not take the others with them."""
    (tmp_path / 'pycocotools').mkdir()
    info = tmp_path / 'pycocotools-2.0.11.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: pycocotools\nVersion: 2.0.11\n')
    code = (
        f'import sys; sys.path.insert(0, {str(tmp_path)!r}); import vpt_dense\n{first}'
        'from mmengine.registry import DATASETS, MODELS\n'
        'model = MODELS.build(dict(type="vpt_dense.ResNet", depth=18))\n'
        'DATASETS.get("vpt_dense.ImageFolder")\n'
        'try: MODELS.build(dict(type="mmpretrain.BlipCaption"))\n'
        'except ImportError as error: print(type(model).__name__, error)'
    )
    assert re.search(r'^ResNet .* requires extra multi-modal dependencies', run_warm(code), re.M)


#: What the registries of the stack hold when all of it is imported, and a few things that are
#: imported later; without arguments as it is, without our guard.
STACK = """
import gc, sys
gc.disable()  # it would look through all that is imported, for seconds
if sys.argv[1:]:
    import vpt_dense
import json, importlib
import numpy as np
from mmengine import registry
for scope in ('mmseg', 'mmpretrain'):
    for part in ('datasets', 'evaluation', 'models', 'visualization'):
        importlib.import_module(f'{scope}.{part}')
early = [m for m in ('transformers', 'timm', 'scipy.ndimage', 'scipy.optimize') if m in sys.modules]
held = {}
for root in vars(registry).values():
    if isinstance(root, registry.Registry):
        for child in [root, *root.children.values()]:
            if child.scope != 'vpt_dense':
                held[f'{child.scope}.{root.name}'] = {
                    name: child.get(name).__module__ for name in sorted(child.module_dict)}
from mmseg.models.assigners import hungarian_assigner
from mmseg.datasets.transforms import transforms
from mmpretrain.models.utils import box_utils
import torch
boxes = torch.tensor([[0., 0, 2, 2], [1, 1, 3, 3]])
used = [
    [part.tolist() for part in hungarian_assigner.linear_sum_assignment(np.eye(2))],
    transforms.gaussian_filter(np.eye(3), 1).tolist(),
    box_utils.boxes.box_iou(boxes, boxes).tolist(),
    issubclass(registry.OPTIMIZERS.get('Adafactor'), torch.optim.Optimizer),
    type(registry.MODELS.build(dict(type='mmseg.TIMMBackbone', model_name='resnet10t',
                                    features_only=True, pretrained=False)).timm_model).__module__]
print(json.dumps([early, held, used]))
"""


@pytest.mark.long
def test_what_is_imported_later_is_the_same(run_warm):
    pytest.importorskip('transformers')
    (_, *plain), (early, *ours) = (json.loads(run(STACK, *words).splitlines()[-1])
                                   for run, *words in ((run_warm,), (run_python, 'guarded')))
    assert ours == plain and early == []
    assert ours[0]['mmengine.optimizer']['Adafactor'].startswith('transformers.')
