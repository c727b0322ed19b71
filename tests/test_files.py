"""Writing files completely or not at all, and seeing every kind of damage when reading them."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from vpt_dense import safe_files
from vpt_dense.errors import UserError
from vpt_dense.weights import reading


def content(size: int = 100) -> dict:
    """What checkpoints hold: tensors, numbers, texts, numpy's arrays, histories."""
    generator = torch.Generator().manual_seed(0)
    return dict(
        state_dict=dict(
            weight=torch.randn(size, 3, generator=generator),
            half=torch.randn(5, generator=generator).bfloat16(),
            count=torch.tensor(7),
            empty=torch.zeros(0, 2),
            mask=torch.tensor([True, False]),
        ),
        meta=dict(iter=3, cfg='model = 1\n', palette=np.arange(6).reshape(2, 3)),
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0, 2.0], [1, 1]))),
    )


def assert_same(found: dict, wanted: dict) -> None:
    for name, tensor in wanted['state_dict'].items():
        assert found['state_dict'][name].dtype == tensor.dtype
        assert torch.equal(found['state_dict'][name], tensor)
    assert found['state_dict'].keys() == wanted['state_dict'].keys()
    assert found['meta']['palette'].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found['message_hub']['log_scalars']['loss'].mean() == 1.5


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# --- round trips -----------------------------------------------------------------------------


def test_a_checkpoint_comes_back(tmp_path):
    safe_files.write(content(), tmp_path / 'new' / 'a.pth')
    safe_files.verify(tmp_path / 'new' / 'a.pth')
    assert_same(safe_files.read(tmp_path / 'new' / 'a.pth'), content())
    assert left(tmp_path / 'new') == ['a.pth']


def test_torch_reads_it_as_any_other(tmp_path):
    safe_files.write(content(), tmp_path / 'ours.pth')
    torch.save(content(), tmp_path / 'theirs.pth')
    ours, theirs = (
        torch.load(tmp_path / name, weights_only=False) for name in ('ours.pth', 'theirs.pth')
    )
    assert_same(ours, theirs)
    mapped = torch.load(tmp_path / 'ours.pth', weights_only=False, mmap=True)
    assert_same(mapped, theirs)
    # the archive is torch's own, but for its comment
    comment = (tmp_path / 'ours.pth').stat().st_size - (tmp_path / 'theirs.pth').stat().st_size
    assert abs(comment - 71) < 200  # the archive's name inside differs


def test_what_is_plain_is_read_by_torchs_defaults(tmp_path):
    """Only so, in every interpreter: mmengine would allow its own types when it is imported."""
    odd = dict(
        state_dict=torch.nn.Linear(2, 1).state_dict(), **{key: content()[key] for key in (
            'meta', 'message_hub')},
        numbers=(np.float64(0.1), np.int64(3), np.bool_(True), np.str_('a'), {1, 2}),
        config=Config(dict(a=1))._cfg_dict,
    )
    safe_files.write(safe_files.plain(odd), tmp_path / 'a.pth')
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        found = torch.load(tmp_path / 'a.pth')
    finally:
        torch.serialization.add_safe_globals(allowed)
    assert found['numbers'] == (0.1, 3, True, 'a', {1, 2})
    assert [type(number) for number in found['numbers'][:4]] == [float, int, bool, str]
    assert found['config'] == dict(a=1) and type(found['config']) is dict
    assert found['meta']['palette'] == [[0, 1, 2], [3, 4, 5]]
    assert found['state_dict']._metadata == odd['state_dict']._metadata
    back = safe_files.read(tmp_path / 'a.pth')['message_hub']['log_scalars']['loss']
    wanted = odd['message_hub']['log_scalars']['loss']
    assert type(back) is HistoryBuffer and back.max_length == wanted.max_length
    assert all(np.array_equal(*pair) and pair[0].dtype == pair[1].dtype
               for pair in zip(back.data, wanted.data, strict=True))


def test_tensors_come_back(tmp_path):
    tensors = content()['state_dict']
    safe_files.write_tensors(tensors, tmp_path / 'a.safetensors', {'method': 'deep'})
    safe_files.verify(tmp_path / 'a.safetensors')
    found = safe_files.read(tmp_path / 'a.safetensors')
    assert found['meta'] == {'method': 'deep'}
    assert found['state_dict'].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found['state_dict'][name], tensor)
        assert found['state_dict'][name].dtype == tensor.dtype


def test_equal_contents_are_equal_bytes(tmp_path):
    tensors = content()['state_dict']
    turned = dict(reversed(tensors.items()))
    safe_files.write_tensors(tensors, tmp_path / 'a.safetensors', {'a': '1', 'b': '2'})
    safe_files.write_tensors(turned, tmp_path / 'b.safetensors', {'b': '2', 'a': '1'})
    safe_files.write(content(), tmp_path / 'a.pth')
    safe_files.write(content(), tmp_path / 'b.pth')
    for suffix in ('safetensors', 'pth'):
        first, second = ((tmp_path / f'{name}.{suffix}').read_bytes() for name in 'ab')
        assert first == second
    tensors['count'] += 1
    safe_files.write_tensors(tensors, tmp_path / 'c.safetensors', {'a': '1', 'b': '2'})
    different = (tmp_path / 'c.safetensors').read_bytes()
    assert different != (tmp_path / 'a.safetensors').read_bytes()


def test_a_stream_in_pieces_of_any_size(tmp_path):
    """The last two bytes are held back, however the pieces fall."""
    path = tmp_path / 'whole'
    safe_files.write(content(), path)
    whole = path.read_bytes()
    for size in (1, 2, 3, 1000):
        with (tmp_path / 'pieces').open('wb') as stream:
            sealing = safe_files._Sealing(stream)
            archive = whole[:-73] + b'\0\0'  # the comment and its length
            for begin in range(0, len(archive), size):
                sealing.write(archive[begin : begin + size])
            sealing.close()
        assert (tmp_path / 'pieces').read_bytes() == whole


def test_foreign_files_are_read(tmp_path):
    """Without our checksum: zip archives, the format before torch 1.6, safetensors."""
    from safetensors.torch import save_file

    torch.save(content(), tmp_path / 'zip.pth')
    torch.save(content(), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    for name in ('zip.pth', 'old.pth'):
        safe_files.verify(tmp_path / name)
        assert_same(safe_files.read(tmp_path / name), content())
    save_file({'a': torch.ones(3)}, tmp_path / 'a.safetensors', {'format': 'pt'})
    safe_files.verify(tmp_path / 'a.safetensors')
    assert safe_files.read(tmp_path / 'a.safetensors')['meta'] == {'format': 'pt'}


# --- damage ----------------------------------------------------------------------------------


@pytest.fixture(scope='module', params=['pth', 'safetensors'])
def whole(request, tmp_path_factory):
    """The bytes of a file, and its suffix."""
    path = tmp_path_factory.mktemp('whole') / f'a.{request.param}'
    if request.param == 'pth':
        safe_files.write(content(), path)
    else:
        metadata = {'method': 'deep', 'base': 'x' * 20}
        safe_files.write_tensors(content()['state_dict'], path, metadata)
    return path.read_bytes(), request.param


def assert_damaged(path: Path) -> None:
    for look in (safe_files.verify, safe_files.read):
        with pytest.raises(UserError, match='^checkpoint .*(damaged|empty|refused)') as caught:
            look(path)
        assert '\n' not in str(caught.value)


def write_safetensors(path: Path, length: int) -> dict:
    """A sound file whose header has this many bytes; return its tensors."""
    tensors = {'a': torch.arange(4.0)}
    safe_files.write_tensors(tensors, path, {'method': 'deep'})
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], 'little')
    path.write_bytes(length.to_bytes(8, 'little') + data[8:end].ljust(length) + data[end:])
    return tensors


@pytest.mark.parametrize('head', [' <', '\t<', '\n\n<', '  \n'])
def test_a_header_whose_length_reads_like_text_is_no_web_page(tmp_path, head):
    """One in 8,192 lengths begins with a blank and '<'."""
    path = tmp_path / 'a.safetensors'
    tensors = write_safetensors(path, int.from_bytes(head.encode(), 'little'))
    safe_files.check(path)
    safe_files.verify(path)
    assert torch.equal(safe_files.read(path)['state_dict']['a'], tensors['a'])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match='truncated or damaged'):
        safe_files.check(path)


@pytest.mark.parametrize('head', ['<html>{', ' \n<!DOCTYPE', '\ufeff<html>', '<x><y>{"{'])
@pytest.mark.parametrize('suffix', ['pth', 'safetensors', 'npz'])
def test_web_pages_are_still_seen(tmp_path, head, suffix):
    path = tmp_path / f'a.{suffix}'
    path.write_text(head + ' not found' * 100, encoding='utf-8')
    with pytest.raises(UserError, match='is a web page'):
        safe_files.check(path)


NAMES = ['a.bin', 'a.SAFETENSORS', 'a.safetensors', 'a.pth', 'a.npz', 'a', 'a.ckpt.1']


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kind', ['safetensors', 'npz', 'archive'])
def test_a_file_is_what_its_content_is(tmp_path, kind, name):
    path, tensors = tmp_path / name, {'x.weight': torch.arange(6.0).reshape(2, 3)}
    if kind == 'safetensors':
        safe_files.write_tensors(tensors, path, {})
    elif kind == 'npz':
        with path.open('wb') as stream:
            np.savez(stream, **{name.replace('.', '/'): t.numpy() for name, t in tensors.items()})
    else:
        torch.save(dict(state_dict=tensors), path)
    assert safe_files.kind(path) == kind
    safe_files.check(path)
    safe_files.verify(path)
    for found in (safe_files.read(path)['state_dict'], reading.read_state_dict(str(path))):
        assert found.keys() == tensors.keys()
        assert torch.equal(found['x.weight'], tensors['x.weight'])


@pytest.mark.parametrize('content', [
    b'not weights\n' * 50, bytes(range(1, 256)) * 4, b'\x89PNG\r\n\x1a\n' + bytes(200),
    b'{"a": 1}'])
@pytest.mark.parametrize('name', NAMES)
def test_what_is_no_pickle_is_not_to_be_unpickled(tmp_path, name, content):
    """The advice to let the file run code was given to whoever named a text or a picture."""
    path = tmp_path / name
    path.write_bytes(content)
    for look in (safe_files.read, safe_files.verify):
        with pytest.raises(UserError, match='damaged') as caught:
            look(path)
        assert safe_files.ALLOW_PICKLE not in str(caught.value)


def test_a_flipped_bit_anywhere(whole, tmp_path):
    data, suffix = whole
    path = tmp_path / f'a.{suffix}'
    # everywhere in the headers and the ends, and at prime distances in between
    places = {*range(0, min(len(data), 600), 7), *range(0, len(data), 61)}
    places |= set(range(len(data) - 110, len(data)))
    for place in sorted(places):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            safe_files.verify(path)
        except UserError:
            continue
        pytest.fail(f'bit {place % 8} of byte {place} of {len(data)} was not missed')


def test_every_bit_of_the_safetensors_header(tmp_path):
    safe_files.write_tensors({'a': torch.ones(2)}, tmp_path / 'a.safetensors', {'method': 'deep'})
    data = (tmp_path / 'a.safetensors').read_bytes()
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            (tmp_path / 'b.safetensors').write_bytes(flipped)
            with pytest.raises(UserError, match='damaged'):
                safe_files.verify(tmp_path / 'b.safetensors')


def test_cut_off_anywhere(whole, tmp_path):
    data, suffix = whole
    path = tmp_path / f'a.{suffix}'
    sizes = {0, 1, 3, 4, 10, 100, len(data) // 2, *range(len(data) - 120, len(data))}
    for size in sorted(sizes):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match='damaged|empty|refused'):
            safe_files.verify(path)


@pytest.mark.parametrize(
    'damage',
    [
        lambda data: b'',
        lambda data: data[: len(data) // 2],
        lambda data: data + b'x',
        lambda data: bytes(len(data)),  # what a power failure may leave
        lambda data: bytes(512) + data[512:],
        lambda data: data[:-512] + bytes(512),
        lambda data: data[:300] + data[400:],
        lambda data: data[:300] + data[200:],
    ],
    ids=['empty', 'half', 'longer', 'zeros', 'head', 'tail', 'hole', 'twice'],
)
def test_damage(whole, tmp_path, damage):
    data, suffix = whole
    path = tmp_path / f'a.{suffix}'
    path.write_bytes(damage(data))
    assert_damaged(path)


def test_a_changed_file_is_looked_at_again(tmp_path):
    """Checksums are compared once a file, but for one that has changed since."""
    path = tmp_path / 'a.pth'
    safe_files.write(content(), path)
    safe_files.verify(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert_damaged(path)


def test_checksums_are_compared_once(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    safe_files.write(content(), path)
    safe_files.verify(path)
    hashed = []
    monkeypatch.setattr(safe_files.hashlib, 'sha256', lambda *args: hashed.append(args))
    assert_same(safe_files.read(path), content())
    assert not hashed


def _raises(error):
    def load(*args, **kwargs):
        raise error

    return load


@pytest.mark.parametrize(
    'error',
    [
        AttributeError("'tuple' object has no attribute '__module__'"),  # an older torch
        TypeError('load() got an unexpected argument'),
        ModuleNotFoundError("No module named 'x'"),
        MemoryError(),
        RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes'),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize('legacy', [False, True])
def test_a_reader_that_fails_is_not_the_files_fault(tmp_path, monkeypatch, error, legacy):
    path = tmp_path / 'iter_1.pth'
    torch.save({'a': torch.ones(1)}, path, _use_new_zipfile_serialization=not legacy)
    monkeypatch.setattr(torch, 'load', _raises(error))
    with pytest.raises(type(error)) as caught:
        safe_files.read(path)
    assert caught.value is error


def test_a_torch_without_what_we_call_is_not_the_files_fault(tmp_path, monkeypatch):
    path = tmp_path / 'iter_1.pth'
    torch.save({'a': torch.ones(1)}, path)
    monkeypatch.delattr(torch.serialization, 'safe_globals')
    with pytest.raises(AttributeError, match='safe_globals'):
        safe_files.read(path)


# --- writing that fails ----------------------------------------------------------------------


def test_after_an_exception_the_old_file_stands(tmp_path):
    safe_files.write_text(tmp_path / 'a.txt', 'old')
    with pytest.raises(KeyError, match='stop'):
        with safe_files.atomic(tmp_path / 'a.txt') as unfinished:
            unfinished.write_text('new')
            raise KeyError('stop')
    assert (tmp_path / 'a.txt').read_text() == 'old'
    assert left(tmp_path) == ['a.txt']


def test_while_it_is_written_the_old_file_stands(tmp_path):
    safe_files.write_text(tmp_path / 'a.txt', 'old')
    with safe_files.atomic(tmp_path / 'a.txt') as unfinished:
        unfinished.write_text('new')
        assert (tmp_path / 'a.txt').read_text() == 'old'
        assert unfinished.parent == tmp_path
    assert (tmp_path / 'a.txt').read_text() == 'new'
    assert left(tmp_path) == ['a.txt']


def test_permissions_are_those_of_other_files(tmp_path):
    old = os.umask(0o027)
    try:
        safe_files.write(content(), tmp_path / 'a.pth')
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / 'a.pth').stat().st_mode) == 0o640


WRITERS = {
    'pth': lambda path: safe_files.write(content(200_000), path),
    'safetensors': lambda path: safe_files.write_tensors(content(200_000)['state_dict'], path, {}),
    'txt': lambda path: safe_files.write_text(path, 'x' * 3_000_000),
}


def check_full(folder: Path, suffix: str) -> None:
    """Write where there is no room for it."""
    path = folder / f'a.{suffix}'
    path.write_text('old')
    with pytest.raises(UserError, match='cannot write .*a[.].*files written before') as caught:
        WRITERS[suffix](path)
    assert '\n' not in str(caught.value)
    assert path.read_text() == 'old'
    assert left(folder) == [path.name]


@pytest.mark.parametrize('suffix', WRITERS)
def test_a_full_disk(small_disk, suffix):
    check_full(small_disk, suffix)


@pytest.mark.parametrize('suffix', WRITERS)
def test_a_limit_on_the_size_of_files(tmp_path, suffix):
    """The system's refusal in the middle of a file, where nothing can be mounted."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        check_full(tmp_path, suffix)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_when_it_is_flushed(tmp_path, monkeypatch, number):
    def fsync(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, 'fsync', fsync)
    check_full(tmp_path, 'pth')


@pytest.mark.parametrize('number', [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch, number):
    """By the system's answer: permissions do not bind root."""

    def mkstemp(**kwargs) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(safe_files.tempfile, 'mkstemp', mkstemp)
    with pytest.raises(UserError, match=f'cannot write {tmp_path}/a.txt: .*; make .* writable'):
        safe_files.write_text(tmp_path / 'a.txt', '')


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(ConnectionError, match='no net'):
        with safe_files.atomic(tmp_path / 'a'):
            raise ConnectionError('no net')
    assert left(tmp_path) == []


# --- killed ----------------------------------------------------------------------------------


def write_for_ever(path: Path, report: int) -> None:
    """In a forked process: write numbered files of two megabytes, and report each."""
    try:
        torch.set_num_threads(1)  # those of the parent are not here
        for number in range(100_000):
            tensor = torch.full((500_000,), float(number))
            safe_files.write(dict(number=number, tensor=tensor), path)
            os.write(report, f'{number}\n'.encode())
    finally:
        os._exit(1)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """After each kill the file is whole, and as new as the last write that was complete."""
    path = tmp_path / 'a.pth'
    unfinished = 0
    for moment in np.linspace(0.0, 0.06, 30):
        receive, report = os.pipe()
        process = os.fork()
        if process == 0:
            write_for_ever(path, report)
        os.close(report)
        with os.fdopen(receive) as reports:
            assert reports.readline() == '0\n'
            time.sleep(moment)
            os.kill(process, signal.SIGKILL)
            complete = int((['0'] + reports.read().split())[-1])
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        found = safe_files.read(path)
        assert found['number'] in (complete, complete + 1)
        assert (found['tensor'] == found['number']).all()
        unfinished += len(left(tmp_path)) - 1
        safe_files.sweep(tmp_path)
        assert left(tmp_path) == ['a.pth']
    assert unfinished  # or no kill came in the middle of a write


def test_sweeping(tmp_path):
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait()
    with subprocess.Popen(['sleep', '60']) as running:
        try:
            names = {pid: f'.a.pth.{pid}.k_3x.unfinished' for pid in (ended.pid, running.pid)}
            others = ['a.pth', '.hidden', 'b.unfinished']
            own = f'.a.pth.{os.getpid()}.abc.unfinished'  # of another machine's process, or old
            for name in [*names.values(), own, *others]:
                (tmp_path / name).touch()
            assert sorted(safe_files.sweep(tmp_path)) == sorted([names[ended.pid], own])
            assert left(tmp_path) == sorted([names[running.pid], *others])
        finally:
            running.kill()


def test_names_of_unfinished_files_are_those_that_are_swept(tmp_path):
    with safe_files.atomic(tmp_path / 'a.b.pth') as unfinished:
        assert safe_files.sweep(tmp_path) == [unfinished.name]
        unfinished.touch()


def test_a_file_that_is_replaced_while_it_is_compared_is_no_damage(tmp_path, monkeypatch):
    """Each is whole; what is compared must be of one of them."""
    path, newer = tmp_path / 'a.pth', tmp_path / 'b.pth'
    safe_files.write(dict(number=1, tensor=torch.zeros(10)), path)
    safe_files.write(dict(number=2, tensor=torch.ones(99)), newer)
    replaced = []

    class Archive(safe_files.zipfile.ZipFile):
        def close(self):
            super().close()
            if not replaced:
                replaced.append(newer.replace(path))

    monkeypatch.setattr(safe_files.zipfile, 'ZipFile', Archive)
    assert safe_files.read(path)['number'] == 2
    assert replaced


def test_a_pipe_stays_a_pipe(tmp_path):
    """As /dev/null must: a file in its place would be another thing for the whole machine."""
    path = tmp_path / 'pipe'
    os.mkfifo(path)
    reading_end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    safe_files.write_text(path, 'text')
    assert os.read(reading_end, 10) == b'text'
    os.close(reading_end)
    assert stat.S_ISFIFO(path.stat().st_mode) and list(tmp_path.iterdir()) == [path]
