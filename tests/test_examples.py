"""The programs of examples/ run on generated data, where what they import is installed."""

import ast
import importlib.util
import re
import subprocess
import sys

import pytest
from utils import ROOT

from vpt_dense import safe_files

#: Program -> what it reports, with the least that it reaches: chance is 37 and 50.
REPORTS = {
    'plain_loop': {'mIoU': 55}, 'knn_and_linear': {'kNN accuracy': 90, 'linear accuracy': 90},
    'lightning_classifier': {'accuracy': 75}, 'hf_trainer': {'accuracy': 75}}  # fmt: skip
#: Packages that an example imports and its requirements do not name: they come along.
FURTHER = {'lightning': ('lightning',), 'transformers': ('transformers', 'accelerate')}
example = pytest.mark.parametrize('name', REPORTS)


def imports(name: str) -> set[str]:
    """The packages that a program imports."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f'examples/{name}.py').read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition('.')[0])
    return found


def run(name: str, folder, *options: str) -> str:
    """What a program prints; skips where a package is absent."""
    for package in imports(name):
        for each in FURTHER.get(package, ()):
            if importlib.util.find_spec(each) is None:
                pytest.skip(f'{each} is not installed')
    command = [sys.executable, str(ROOT / f'examples/{name}.py'), '--tiny', *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.long
@example
def test_it_learns_and_writes_what_was_tuned(name, tmp_path):
    options = ['--out', 'out'] if name == 'hf_trainer' else []
    printed = run(name, tmp_path, *options)
    for metric, least in REPORTS[name].items():
        (value,) = re.findall(rf'^{metric} ([\d.]+)$', printed, re.MULTILINE)
        assert float(value) >= least, printed
    written = sorted(tmp_path.rglob('*.safetensors'))
    assert bool(written) == (name != 'knn_and_linear')
    for file in written:
        state = safe_files.read(file)['state_dict']
        assert {key.split('.')[0] for key in state} == {'backbone', 'head'}
        assert not any('.blocks.' in key for key in state)


@pytest.mark.long
def test_a_trainer_goes_on_from_what_was_tuned(tmp_path):
    printed = run('hf_trainer', tmp_path, '--out', 'whole')
    (first, *_) = sorted((tmp_path / 'whole').glob('checkpoint-*'))
    assert {file.name for file in first.iterdir()} >= {'delta.safetensors', 'optimizer.pt'}
    assert not (first / 'model.safetensors').exists()
    again = run('hf_trainer', tmp_path, '--out', 'again', '--resume', str(first))
    accuracy = re.compile(r'^accuracy .*$', re.MULTILINE)
    assert accuracy.findall(printed) == accuracy.findall(again)
    whole, other = (
        safe_files.read(tmp_path / name / 'delta.safetensors')['state_dict']
        for name in ('whole', 'again'))
    assert all((whole[key] - other[key]).abs().max() < 1e-5 for key in whole)


def test_the_programs_are_short_and_all_are_run():
    names = {file.stem for file in (ROOT / 'examples').glob('*.py')}
    assert names == {*REPORTS, 'tiny'}
    for name in names:
        assert len((ROOT / f'examples/{name}.py').read_text().splitlines()) <= 110
    page = (ROOT / 'docs/pytorch.md').read_text()
    assert all(f'examples/{name}.py' in page for name in REPORTS)


def test_what_they_import_is_required():
    """By requirements/minimal.txt, examples.txt, or by timm: torchvision and Pillow."""
    required = {'vpt_dense', 'tiny', 'torchvision', 'PIL'} | {
        re.match(r'[\w-]+', line)[0] for file in ('minimal', 'examples') for line in
        (ROOT / f'requirements/{file}.txt').read_text().splitlines() if line[:1] != '#'}
    for name in REPORTS:
        assert imports(name) <= required | set(sys.stdlib_module_names)
