"""Files that would run code when read: none does, whatever they look like and wherever they enter.

Every payload would create a file, the marker. That it really would is tested first: each is read
once without protection.
"""

import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import warnings
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from tool_helpers import forget_runs, run_tool, tiny_folder, write_leaf
from torch import nn
from utils import ROOT

from vpt_dense import safe_files
from vpt_dense.errors import UserError

FLAG = safe_files.ALLOW_PICKLE


# --- payloads: functions (path, marker) that write a file ------------------------------------


class Call:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def code(marker):
    return f"open({str(marker)!r}, 'w').close()"


def honest():
    """What a checkpoint of a run holds, as far as loaders look."""
    return dict(
        state_dict={'weight': torch.zeros(2)},
        meta=dict(cfg='', iter=1, epoch=0, dataset_meta=dict(classes=('a',))),
        optimizer=dict(state={}, param_groups=[]),
        param_schedulers=[],
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
    )


def put(place):
    """A payload at a dotted place of a checkpoint, several levels down."""

    def write(path, marker):
        content = honest()
        node = content
        for key in place.split('.'):
            node = node.setdefault(key, {}) if isinstance(node, dict) else node
        bad = [{'x': (Call(exec, code(marker)),)}]
        node.append(bad) if isinstance(node, list) else node.update(deep=bad)
        torch.save(content, path)

    return write


def top_level_system(path, marker):
    torch.save(Call(os.system, f'touch {marker}'), path)


def eval_as_weights(path, marker):
    torch.save({'state_dict': {'weight': Call(eval, code(marker))}}, path)


def subprocess_call(path, marker):
    torch.save({**honest(), 'hooks': Call(subprocess.call, ['touch', str(marker)])}, path)


def path_touch(path, marker):
    torch.save({**honest(), 'x': Call(Path.touch, marker)}, path)


def legacy(path, marker):
    content = {**honest(), 'x': Call(exec, code(marker))}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def bare(path, marker):
    """Not torch's: a pickle of protocol 4 alone."""
    path.write_bytes(pickle.dumps(Call(exec, code(marker)), protocol=4))


def legacy_tar(path, marker):
    """torch's format before version 0.2."""
    with tarfile.open(path, 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            content = pickle.dumps(Call(exec, code(marker)), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def archive(path, pickled):
    """An archive as torch writes it, with any pickle as its ``data.pkl``."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as content:
        content.writestr('archive/data.pkl', pickled)
        content.writestr('archive/byteorder', 'little')
        content.writestr('archive/version', '3\n')


def replaced_pickle(path, marker):
    """A good archive, sealed by us, whose pickle was replaced; its checksums are right."""
    safe_files.write(honest(), path)
    with zipfile.ZipFile(path) as good:
        members = {name: good.read(name) for name in good.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as bad:
        for name, content in members.items():
            if name.endswith('/data.pkl'):
                content = pickle.dumps({**honest(), 'x': Call(exec, code(marker))}, protocol=2)
            bad.writestr(name, content)


def text(value):
    """Opcode that pushes a string."""
    return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


#: The module builtins, then exec in it, by nothing but getattr, which honest checkpoints name too.
BUILTINS = b'cbuiltins\ngetattr\n' b'cbuiltins\ngetattr\n' + text('__self__') + b'\x86R'
EXEC = b'cbuiltins\ngetattr\n(' + BUILTINS + text('exec') + b'tR'


def getattr_to_rebuild(path, marker):
    """exec, reached by getattr, called by a function of torch that calls its argument."""
    arguments = EXEC + b'ccollections\nOrderedDict\n' + text(code(marker)) + b'\x85N'
    archive(path, b'\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(' + arguments + b'tR.')


def getattr_to_setstate(path, marker):
    """exec, reached by getattr, becomes ``__setstate__`` of an object of an allowed class."""
    buffer = b'cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81'
    state = b'}' + text('__setstate__') + EXEC + b'sb'
    archive(path, b'\x80\x02' + buffer + state + text(code(marker)) + b'b.')


def getattr_of_allowed_class(path, marker):
    """The globals of a method of an allowed class lead to builtins as well."""
    method = b'cbuiltins\ngetattr\n(cmmengine.logging.history_buffer\nHistoryBuffer\n'
    method += text('register_statistics') + b'tR'
    function = b'cbuiltins\ngetattr\n(' + method + text('__func__') + b'tR'
    names = b'cbuiltins\ngetattr\n(' + function + text('__builtins__') + b'tR'
    item = b'cbuiltins\ngetattr\n(' + names + text('__getitem__') + b'tR'
    archive(path, b'\x80\x02' + item + text('exec') + b'\x85R' + text(code(marker)) + b'\x85R.')


def rebuild_of_system(path, marker):
    arguments = b'cposix\nsystem\n' b'ctorch\nTensor\n' + text(f'touch {marker}') + b'\x85N'
    archive(path, b'\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(' + arguments + b'tR.')


def rebuild_parameter(path, marker):
    """Hostile arguments of an allowed function: evaluated before it is called."""
    call = b'cbuiltins\nexec\n' + text(code(marker)) + b'\x85R'
    archive(path, b'\x80\x02ctorch._utils\n_rebuild_parameter\n(' + call + b'\x88NtR.')


def stack_global(path, marker):
    """The function's name is put together from the memo, so that no scanner reads it."""
    names = text('exec') + b'\x94' + text('builtins') + b'\x94' + b'0' + b'0' + b'h\x01h\x00\x93'
    archive(path, b'\x80\x04' + names + text(code(marker)) + b'\x85R.')


def inst_opcode(path, marker):
    """Protocol 0: class and call in one opcode."""
    archive(path, b"(S'touch " + str(marker).encode() + b"'\niposix\nsystem\n.")


def obj_opcode(path, marker):
    archive(path, b'(cposix\nsystem\n' + text(f'touch {marker}') + b'o.')


def persistent_id(path, marker):
    """The name of a storage, which torch looks up while it unpickles."""
    call = b'cbuiltins\nexec\n' + text(code(marker)) + b'\x85R'
    archive(path, b'\x80\x02(' + text('storage') + call + text('0') + text('cpu') + b'K\x00tQ.')


def polyglot(path, marker):
    """A pickle that ends in a good archive."""
    torch.save(honest(), path)
    path.write_bytes(pickle.dumps(Call(exec, code(marker)), protocol=2) + path.read_bytes())


def numpy_objects(path, marker):
    np.savez(path.with_suffix('.npz'), weight=np.array([Call(exec, code(marker))], dtype=object))
    path.with_suffix('.npz').rename(path)


def renamed_to_safetensors(path, marker):
    path.write_bytes(pickle.dumps(Call(exec, code(marker)), protocol=2))


def object_array(path, marker):
    """An array of pointers made from bytes: reading it would crash, or worse."""
    kind = b'cnumpy\ndtype\n' + text('O8') + b'\x85R'
    memory = b'cbuiltins\nbytearray\n' b'K\x08\x85R'
    archive(path, b'\x80\x02cnumpy\nndarray\n(K\x01\x85' + kind + memory + b'tR.')


def torch_script(path, marker):
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


def blindly(path):
    """Read as old code does."""
    if path.suffix == '.npz':
        np.load(path, allow_pickle=True)['weight']
    elif path.suffix == '.safetensors':
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)


PLAIN = (
    *(put(place) for place in ('meta', 'optimizer.state', 'message_hub.log_scalars',
                               'message_hub.runtime_info', 'param_schedulers',
                               'ema_state_dict')),
    top_level_system, eval_as_weights, subprocess_call, path_touch, legacy, bare, legacy_tar,
    replaced_pickle, getattr_to_rebuild, getattr_to_setstate, getattr_of_allowed_class,
    rebuild_of_system, rebuild_parameter, stack_global, inst_opcode, obj_opcode, persistent_id,
    polyglot,
)  # fmt: skip
NAMES = ['meta', 'optimizer', 'log_scalars', 'runtime_info', 'param_schedulers', 'ema_state_dict',
         *(function.__name__ for function in PLAIN[6:])]  # fmt: skip
#: Name -> (writes it, suffix, what the error says).
PAYLOADS = {
    **{name: (function, '.pth', FLAG) for name, function in zip(NAMES, PLAIN, strict=True)},
    'object_array': (object_array, '.pth', FLAG),
    'numpy_objects': (numpy_objects, '.npz', 'damaged|no .npz file of plain arrays'),
    'renamed_to_safetensors': (renamed_to_safetensors, '.safetensors', 'truncated or damaged'),
    'torch_script': (torch_script, '.pth', 'TorchScript'),
}
#: These tell one way in from another; the rest goes through all of them in slow and long tests.
SOME = ('top_level_system', 'getattr_to_rebuild', 'legacy')
LIVE = [name for name in PAYLOADS if name not in ('object_array', 'torch_script')]


@pytest.fixture
def marker(tmp_path):
    return tmp_path / 'executed'


def make(name, tmp_path, marker):
    write, suffix, told = PAYLOADS[name]
    path = tmp_path / f'hostile{suffix}'
    write(path, marker)
    return path, told


@pytest.mark.parametrize('name', LIVE)
def test_payload_is_live(tmp_path, marker, name):
    path, _ = make(name, tmp_path, marker)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            blindly(path)
    except Exception:  # noqa: S110 - what it returns is no checkpoint; the marker counts
        pass
    assert marker.exists()


@pytest.mark.parametrize('name', ['getattr_to_rebuild', 'getattr_to_setstate'])
def test_mmengines_own_list_of_harmless_names_is_not(tmp_path, marker, name):
    """Why there is a list of our own; where this fails, mmengine has mended its."""
    from mmengine.runner.checkpoint import get_torch_safe_globals

    path, _ = make(name, tmp_path, marker)
    with torch.serialization.safe_globals(get_torch_safe_globals()):
        try:
            torch.load(path, weights_only=True)
        except Exception:  # noqa: S110 - as above
            pass
    assert marker.exists()


# --- ways in: functions (path, tmp_path, data) that raise UserError --------------------------


def read(path, tmp_path):
    safe_files.read(path)


def read_state_dict(path, tmp_path):
    from vpt_dense.weights import read_state_dict

    read_state_dict(str(path))


def verify(path, tmp_path):
    from vpt_dense.weights import checkpoints

    checkpoints.read(str(path))


def load_checkpoint(path, tmp_path):
    from mmengine.runner import load_checkpoint

    load_checkpoint(nn.Linear(2, 2), str(path))


def load_checkpoint_with_prefix(path, tmp_path):
    from mmengine.runner.checkpoint import _load_checkpoint_with_prefix

    _load_checkpoint_with_prefix('backbone.', str(path))


def init_cfg_of_any_module(path, tmp_path):
    from mmengine.model import Sequential

    Sequential(init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()


def inferencer_without_config(path, tmp_path):
    """What every inferencer calls when it gets weights and no model."""
    from mmengine.infer import BaseInferencer

    BaseInferencer._init_model(None, {}, str(path), 'cpu')


def backbone(path, tmp_path):
    from utils import tiny_vit

    tiny_vit(init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()


def stream(path, tmp_path):
    """As object stores hand it over."""
    from mmengine.runner import checkpoint

    with path.open('rb') as content:
        checkpoint._safe_torch_load(content, map_location='cpu')


class Silent(SimpleHTTPRequestHandler):
    """Serves files and tells nobody."""

    def log_message(self, *arguments):
        """Nothing."""


def over_http(load):
    def way(path, tmp_path):
        server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Silent, directory=path.parent))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with mock.patch.dict(os.environ, TORCH_HOME=str(tmp_path / 'torch')):
                load(f'http://127.0.0.1:{server.server_port}/{path.name}', tmp_path)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    return way


QUICK = {
    function.__name__: function
    for function in (read, read_state_dict, verify, load_checkpoint, load_checkpoint_with_prefix,
                     init_cfg_of_any_module, inferencer_without_config, backbone, stream)
} | {
    'http': over_http(load_checkpoint),
    'http_of_backbone': over_http(backbone),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _not_allowed(monkeypatch):
    monkeypatch.delenv(FLAG, raising=False)
    # torch's own switch does not open the door either
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')


@pytest.mark.parametrize('name', PAYLOADS)
@pytest.mark.parametrize('way', QUICK)
def test_nothing_runs(tmp_path, marker, capfd, mmseg_scope, way, name):
    path, told = make(name, tmp_path, marker)
    if way == 'stream':  # it has no name, so no suffix either
        told = f'{told}|{FLAG}'
    with pytest.raises(UserError, match=told) as caught:
        QUICK[way](path, tmp_path)
    assert not marker.exists()
    line = str(caught.value)
    assert '\n' not in line
    assert way == 'stream' or path.name in line


# --- the tools and the inferencers -----------------------------------------------------------


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp('data'))


def tool(name, *arguments, extra=''):
    """A tool's command line; ``{}`` is the file."""

    def way(path, folder, data, capfd):
        leaf = write_leaf(folder, data, extra.format(path))
        given = [str(argument).format(path) for argument in arguments]
        outcome = run_tool(capfd, name, leaf, *given)
        assert outcome.code == 2, outcome
        (line,) = outcome.err.strip().splitlines()
        assert line.startswith('error: ')
        return line

    return way


def resume_folder(path, folder, data, capfd):
    run = folder / 'run'
    run.mkdir()
    final = path.rename(run / f'iter_1{path.suffix}')
    (run / 'last_checkpoint').write_text(str(final))
    return tool('train', '--resume', run)(final, folder, data, capfd).replace('iter_1', 'hostile')


def api(call):
    """A call of an inferencer: config and weights."""

    def way(path, folder, data, capfd):
        forget_runs()
        leaf = write_leaf(folder, data)
        with pytest.raises(UserError) as caught:
            call(str(leaf), str(path))
        return str(caught.value)

    return way


def mmseg_init_model(config, path):
    from mmseg.apis import init_model

    init_model(config, path, device='cpu')


def mmseg_inferencer(config, path):
    from mmseg.apis import MMSegInferencer

    MMSegInferencer(config, weights=path, device='cpu')


def mmpretrain_get_model(config, path):
    from mmpretrain import get_model

    get_model(classifier(config), pretrained=path, device='cpu')


def mmpretrain_inferencer(config, path):
    from mmpretrain import ImageClassificationInferencer

    ImageClassificationInferencer(classifier(config), pretrained=path, device='cpu')


def classifier(config):
    """A small classifier's config beside ``config``."""
    path = Path(config).with_name('classifier.py')
    path.write_text(f"""
_base_ = '{ROOT}/configs/vpt/vit-b_deep_imagefolder.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=2,
                            feedforward_channels=64), img_size=32, patch_size=8, init_cfg=None),
    head=dict(in_channels=32, num_classes=2))
""")
    return str(path)


BACKBONE = "\nmodel['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='{}')\n"
HEAD = "\nmodel['decode_head']['init_cfg'] = dict(type='Pretrained', checkpoint='{}')\n"
EMA = "\ncustom_hooks = [dict(type='EMAHook')]\n"


def delta(command, *more):
    """A command of tools/delta.py."""

    def way(path, folder, data, capfd):
        leaf = write_leaf(folder, data)
        given = [argument.format(folder / 'out', leaf=leaf) for argument in more]
        outcome = run_tool(capfd, 'delta', command, path, *given)
        assert outcome.code == 2, outcome
        assert not list(folder.glob('out*'))
        (line,) = outcome.err.strip().splitlines()
        return line

    return way


SLOW = {
    'delta info': delta('info'),
    'delta extract': delta('extract', '{}.safetensors', '--config', '{leaf}'),
    'delta merge': delta('merge', '{}.pth', '--config', '{leaf}'),
    'delta fold': delta('fold', '{}.pth', '--config', '{leaf}'),
    'delta diff': delta('diff', '{leaf}'),
    'train --resume FILE': tool('train', '--resume', '{}'),
    'train --resume FOLDER': resume_folder,
    'train --resume FILE with EMA': tool('train', '--resume', '{}', extra=EMA),
    'load_from': tool('train', extra="\nload_from = '{}'\n"),
    'load_from by option': tool('train', '--cfg-options', 'load_from={}'),
    'init_cfg of the backbone': tool('train', extra=BACKBONE),
    'init_cfg of a head': tool('train', extra=HEAD),
    'test': tool('test', '{}'),
    'mmseg init_model': api(mmseg_init_model),
    'mmseg inferencer': api(mmseg_inferencer),
    'mmpretrain get_model': api(mmpretrain_get_model),
    'mmpretrain inferencer': api(mmpretrain_inferencer),
}


@pytest.mark.parametrize(
    ('way', 'name'),
    [pytest.param(way, name, marks=() if name in SOME else (
        pytest.mark.slow if number % 4 == 1 else pytest.mark.long))
     for way in SLOW for number, name in enumerate(PAYLOADS)],
)  # fmt: skip
def test_nothing_runs_in_tools(tmp_path, marker, data, capfd, way, name):
    path, told = make(name, tmp_path, marker)
    line = SLOW[way](path, tmp_path, data, capfd)
    assert not marker.exists()
    assert path.name in line
    if told == FLAG:
        assert FLAG in line
    assert '\n' not in line


# --- configs inside checkpoints --------------------------------------------------------------


def texts(marker):
    """Configs that mmengine would execute, or build, which is the same."""
    return {
        'statement': code(marker),
        'expression': f'model = [{code(marker)}]',
        'comprehension': f'model = dict(type=[{code(marker)} for _ in [1]])',
        'type': f"model = dict(type='builtins.exec', source={code(marker)!r})",
        'pipeline': "model = dict(type='EncoderDecoder')\ntest_dataloader = dict(dataset=dict("
        f"pipeline=[dict(type='os.system', command='touch {marker}')]))",
    }


@pytest.mark.parametrize('name', texts(''))
def test_a_config_in_a_checkpoint_is_data(tmp_path, marker, name):
    from mmengine.infer import BaseInferencer

    path = tmp_path / 'hostile.pth'
    for place in ('meta', 'message_hub'):
        content = honest()
        text = texts(marker)[name]
        content['meta']['cfg'] = text
        if place == 'message_hub':
            content['message_hub']['runtime_info']['cfg'] = text
        torch.save(content, path)
        with pytest.raises(UserError, match=f'config in it is not plain data.*{FLAG}=1'):
            BaseInferencer._init_model(None, {}, str(path), 'cpu')
        assert not marker.exists()


def test_a_config_in_a_resumed_checkpoint_is_data(tmp_path, marker, data, capfd):
    """mmengine's Runner executes ``meta.config`` to look for the number of GPUs."""
    leaf = write_leaf(tmp_path, data)
    assert run_tool(capfd, 'train', leaf).code == 0
    path = tmp_path / 'hostile.pth'
    content = safe_files.read(tmp_path / 'work/iter_1.pth')
    content['meta']['config'] = code(marker)
    torch.save(content, path)
    outcome = run_tool(capfd, 'train', leaf, '--resume', path)
    assert not marker.exists()
    assert outcome.code == 2 and FLAG in outcome.err, outcome
    content['meta']['config'] = 'gpu_ids = [0]\nlog_level = "INFO"'
    torch.save(content, path)
    assert run_tool(capfd, 'train', leaf, '--resume', path).code == 0


# --- before this package is asked for anything -----------------------------------------------


@pytest.mark.slow
def test_reading_a_config_is_enough(tmp_path, marker, data):
    """An inferencer opens the weights before any of our classes is built."""
    path, _ = make('top_level_system', tmp_path, marker)
    leaf = write_leaf(tmp_path, data)
    program = f"""
from mmengine.config import Config
from mmengine.runner.checkpoint import _load_checkpoint
Config.fromfile({str(leaf)!r})
_load_checkpoint({str(path)!r}, map_location='cpu')
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert f'UserError: checkpoint {path} is refused' in done.stderr
    assert done.returncode and not marker.exists()


# --- the switch ------------------------------------------------------------------------------


@pytest.mark.parametrize('new', [True, False], ids=['archive', 'pickle'])
def test_the_switch_allows_what_needs_code(tmp_path, monkeypatch, new):
    from argparse import Namespace

    path = tmp_path / 'old.pth'
    content = {'state_dict': {'weight': torch.ones(2)}, 'args': Namespace(lr=0.1)}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match=f'argparse.Namespace.*{FLAG}=1'):
        safe_files.read(path)
    for value in ('0', 'true', ''):  # the one value that the message names
        monkeypatch.setenv(FLAG, value)
        with pytest.raises(UserError, match='is refused'):
            safe_files.read(path)
    monkeypatch.setenv(FLAG, '1')
    with pytest.warns(UserWarning, match=f'old.pth may run any code as you: {FLAG}=1'):
        found = safe_files.read(path)
    assert found['args'].lr == 0.1 and torch.equal(found['state_dict']['weight'], torch.ones(2))


def test_the_switch_changes_nothing_for_good_files(tmp_path, monkeypatch):
    safe_files.write(honest(), tmp_path / 'good.pth')
    monkeypatch.setenv(FLAG, '1')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert safe_files.read(tmp_path / 'good.pth').keys() == honest().keys()


# --- what honest checkpoints hold ------------------------------------------------------------


@pytest.mark.parametrize('new', [True, False], ids=['archive', 'pickle'])
def test_what_a_run_keeps_is_read_as_it_was(tmp_path, new):
    from mmengine.logging import HistoryBuffer

    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    buffer.update(4.5, 2)
    arrays = {
        code: np.array([[0, 1], [1, 1], [0, 0]], code).T for code in '?bBhHiIlLqQefdgFDG'
    } | {'empty': np.zeros((0, 3)), 'number': np.array(3.5)}
    content = dict(buffer=buffer, arrays=arrays, scalars={c: a[0, 1] for c, a in arrays.items()
                                                          if a.ndim == 2 and a.size})  # fmt: skip
    path = tmp_path / 'run.pth'
    torch.save(content, path, _use_new_zipfile_serialization=new)
    found = safe_files.read(path)
    for code, wanted in arrays.items():
        np.testing.assert_array_equal(found['arrays'][code], wanted, strict=True)
    for code, wanted in content['scalars'].items():
        assert found['scalars'][code] == wanted and found['scalars'][code].dtype == wanted.dtype
    assert found['buffer'].statistics('mean', 3) == buffer.mean(3)
    np.testing.assert_array_equal(found['buffer'].data, buffer.data)


def test_arrays_of_numpy_1_are_read(tmp_path):
    """numpy.core, as it was called then."""
    content = pickle.dumps({'a': np.arange(3.0), 'b': np.float32(2)}, protocol=2)
    assert b'numpy._core' in content
    archive(tmp_path / 'old.pth', content.replace(b'numpy._core', b'numpy.core'))
    found = safe_files.read(tmp_path / 'old.pth')
    assert found['a'].tolist() == [0, 1, 2] and found['b'] == 2
