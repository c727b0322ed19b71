"""Plain PyTorch needs nothing of OpenMMLab; `make test-minimal` shows it without these packages."""

import subprocess
import sys

import pytest
from minimal import ABSENT
from processes import warm
from utils import ROOT

PROGRAM = str(ROOT / 'tests/minimal.py')


@pytest.fixture(scope='module')
def hidden(tmp_path_factory):
    """Run code in a process where the packages are hidden."""
    begin = (f'import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); '
             'import huggingface_hub, numpy, safetensors.torch, timm, torch\n')
    with warm(begin, tmp_path_factory.mktemp('hidden'), cwd=ROOT) as run:
        yield run


@pytest.mark.slow  # `make test-minimal` has it, where nothing else is installed
def test_nothing_of_openmmlab_is_needed(hidden):
    done = hidden(f"import runpy; runpy.run_path({PROGRAM!r}, run_name='__main__')")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('Plain PyTorch is enough: torch '), done.stdout


def test_the_program_sees_what_is_there():
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode and 'mmengine can be imported: this is no minimal' in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('content, message', {
    None: 'no such file',
    b'{}': 'is no file of vpt_dense.save_delta; those of configs need mmengine',
    b'': 'is empty',
}.items(), ids=['absent', 'other', 'empty'])  # fmt: skip
def test_checkpoints_of_configs_are_told_apart(content, message, tmp_path, hidden):
    file = tmp_path / 'x.pth'
    if content is not None:
        file.write_bytes(content)
    done = hidden(f'import vpt_dense; vpt_dense.load({str(file)!r})')
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('vpt_dense.errors.UserError: ') and message in last, done.stderr


def test_versions_are_those_of_the_whole_package():
    lines = {
        name: [line.partition(' ')[0] for line in
               (ROOT / f'requirements/{name}.txt').read_text().splitlines() if line[:1] != '#']
        for name in ('minimal', 'runtime')}
    assert len(lines['minimal']) == 5
    assert set(lines['minimal']) < set(lines['runtime'])
