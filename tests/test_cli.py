"""The console command: every tool under one name."""

import importlib
import os
import re
import subprocess
import sys

import pytest
from tool_helpers import run_tool
from utils import CONFIGS, ROOT

from vpt_dense import cli, errors
from vpt_dense.version import __version__


def call(capfd, monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['vpt-dense', *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        errors.main(cli.main)
    return leaving.value.code or 0, *capfd.readouterr()


@pytest.mark.parametrize('arguments', [(), ('--help',), ('-h',)])
def test_help_fits_a_screen(capfd, monkeypatch, arguments):
    code, out, err = call(capfd, monkeypatch, *arguments)
    assert (code, err) == (0, '')
    lines = out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    listed = re.findall(r'^  (\S+(?:, \S+)*)  ', out, re.MULTILINE)
    listed = [name for line in listed for name in line.split(', ')]
    assert set(cli.COMMANDS) - {'make-dataset'} == set(listed)


@pytest.mark.parametrize(('backend', 'kept'), [
    ('module://matplotlib_inline.backend_inline', [None, None]), ('agg', ['agg', '1'])])
def test_what_a_notebook_says_of_itself_is_not_for_commands(capfd, monkeypatch, backend, kept):
    monkeypatch.setenv('MPLBACKEND', backend)
    monkeypatch.setenv('FORCE_COLOR', '1')
    assert call(capfd, monkeypatch, '--version')[0] == 0
    assert [os.environ.get(name) for name in ('MPLBACKEND', 'FORCE_COLOR')] == kept


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_every_command_is_the_tool(capfd, monkeypatch, name):
    """The same function; its help says by which name it was called."""
    module, _ = cli.COMMANDS[name]
    command = importlib.import_module(f'vpt_dense.commands.{module}')
    text = (ROOT / 'tools' / f'{module}.py').read_text()
    assert f'from vpt_dense.commands.{module} import main' in text and len(text.splitlines()) <= 20
    assert command.main.__module__ == command.__name__
    code, out, _ = call(capfd, monkeypatch, name, '--help')
    assert code == 0 and out.startswith(f'usage: vpt-dense {name} ')


def test_every_tool_is_a_command():
    tools = {path.stem for path in (ROOT / 'tools').glob('*.py')}
    # transfer is a kind of analyse.
    of_the_repository = {'make_zoo', 'methods_table', 'pretrain_demo', 'results', 'transfer'}
    assert tools - of_the_repository == {module for module, _ in cli.COMMANDS.values()}


def test_a_command_does_what_the_tool_does(capfd, monkeypatch):
    config = CONFIGS / 'vpt/setr_vit-l_ade20k.py'
    by_tool = run_tool(capfd, 'print_config', config, 'model.backbone', '--method', 'deep')
    code, out, _ = call(capfd, monkeypatch, 'config', config, 'model.backbone', '--method', 'deep')
    assert code == 0 and out == by_tool.out and 'TokenPrompt' in out


@pytest.mark.parametrize(('arguments', 'said'), [
    (['trian'], "vpt-dense trian: there is no such command; did you mean 'train'?"),
    (['train'], 'the following arguments are required: config; see vpt-dense train --help'),
    (['train', 'gone.py'], 'config gone.py: no such file'),
])
def test_what_is_wrong_is_one_line(capfd, monkeypatch, arguments, said):
    code, _, err = call(capfd, monkeypatch, *arguments)
    (line,) = err.splitlines()
    assert code == 2 and said in line


def test_the_version(capfd, monkeypatch):
    assert call(capfd, monkeypatch, '--version')[1] == f'vpt-dense {__version__}\n'


@pytest.mark.parametrize(('typed', 'offered', 'not_offered'), [
    ('', ['train', 'make-dataset'], ['vpt_dense']),
    ('tr', ['train'], ['test']),
    ('train --re', ['--resume'], ['--amp']),
    ('train ', ['vpt_dense::', 'mmseg::', 'configs/'], ['README.md']),
    ('train vpt_dense::setr_vit-l_d', ['vpt_dense::setr_vit-l_deep_ade20k'],
     ['vpt_dense::setr_vit-l_ade20k']),
    ('count mmseg::setr/', ['mmseg::setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512'], []),
    ('predict zoo::cam', ['zoo::camvid_dinov2-s_lora'], ['zoo::linear_nuclei_deep']),
    ('suite docs/../conf', ['docs/../configs/'], ['docs/../CONTRIBUTING.md']),
    ('delta info ', ['zoo::', 'README.md'], []),
    ('config x.py --method l', ['lora', 'lor-vp', 'linear'], ['deep', 'pad_cls']),
    ('delta extract --me', ['--method'], ['--traceback']),
])  # fmt: skip
def test_what_a_shell_completes(tmp_path, typed, offered, not_offered):
    """By argcomplete's protocol, as the function that it gives the shell speaks it."""
    line = f'vpt-dense {typed}'
    done = subprocess.run(
        [sys.executable, '-X', 'importtime', '-m', 'vpt_dense'], capture_output=True, text=True,
        cwd=ROOT, env={
            **os.environ, 'PYTHONPATH': str(ROOT), '_ARGCOMPLETE': '1', '_ARGCOMPLETE_IFS': '\n',
            '_ARGCOMPLETE_STDOUT_FILENAME': str(tmp_path / 'found'), 'COMP_LINE': line,
            'COMP_POINT': str(len(line))})
    assert done.returncode == 0, done.stderr
    assert 'mmengine' not in done.stderr.replace('vpt_dense.', '')  # quick
    found = [word.strip() for word in (tmp_path / 'found').read_text().split('\n')]
    assert set(offered) <= set(found) and not set(not_offered) & set(found)


@pytest.mark.parametrize('name', ['--help', *cli.COMMANDS])
def test_every_help_imports_no_framework(name):
    code = (f"import sys; from vpt_dense import cli; sys.argv = ['vpt-dense', {name!r}, '-h']\n"
            "try: cli.main()\nexcept SystemExit: pass\n"
            "print([m for m in ('torch', 'mmengine') if m in sys.modules])")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '[]'
