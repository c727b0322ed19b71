"""Opening and writing files of tensors: no code is run, damage is seen, nothing is lost.

The only module that calls ``torch.load``, ``torch.save`` and safetensors.

Files are written beside their final name, flushed to the disk and then renamed, so that a file
under a final name is always whole, whenever the process is killed. Their SHA-256 is stored inside:
neither torch's archives nor safetensors notice every flipped bit by themselves.
"""

import codecs
import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import mmap
import os
import pickle
import re
import struct
import sys
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from vpt_dense import few_bits, shipped
from vpt_dense.errors import FULL, UserError, is_programs

#: The one switch that lets a file execute code when it is read: set to 1 in the environment.
ALLOW_PICKLE = 'VPT_DENSE_ALLOW_PICKLE'

#: A zip archive may end in a comment, which its readers skip: the digest of all bytes before it.
_COMMENT = re.compile(rb'sha256:([0-9a-f]{64})\Z')
_COMMENT_LENGTH = 7 + 64

#: How ``format`` in the metadata of a delta begins, see :mod:`vpt_dense.checkpoints.deltas`.
DELTA = 'vpt_dense delta'
#: ``format`` of a file of :func:`vpt_dense.save_delta`.
PLAIN_DELTA = f'{DELTA} of plain PyTorch 1'

#: In the names of files that are being written; what is left of them has lost its process.
_UNFINISHED = '.unfinished'

#: Ways of the system to say that a file must not be written.
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)

#: Archives whose checksums were compared in this process (path, inode, size, time of change): a
#: checkpoint to go on from is looked at before the run is built, and need not be read twice.
_compared: set[tuple] = set()


# --- writing ---------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Write a file completely or not at all.

    Args:
        path: The final name; its folder is made if it is absent.

    Yields:
        The name to write to, in the same folder; of a device or a pipe its own. When the block
        ends, the file is flushed to the disk and renamed; after an exception it is removed and the
        old file stands.

    Raises:
        UserError: If the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # a device or a pipe stays one
        with told(path):
            yield path
        return
    unfinished = None
    known = os.fsencode(path.name)[:200].decode(errors='ignore')  # a name has at most 255 bytes
    try:
        with told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(
                prefix=f'.{known}.{os.getpid()}.', suffix=_UNFINISHED, dir=path.parent
            )
            os.close(handle)
            unfinished = Path(name)
            yield unfinished
            _flush(unfinished)
            unfinished.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner alone
            os.replace(unfinished, path)
            _flush(path.parent)
    finally:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def told(path: str | Path) -> Iterator[None]:
    """Say in one line that a file cannot be written, where that is the user's to mend.

    Raises:
        UserError: If the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            reason = 'the disk is full' if error.errno != errno.EFBIG else 'the file is too large'
            raise UserError(
                f'cannot write {path}: {reason} ({error.strerror}); files written before are '
                'untouched, free some space and go on with --resume (of predictions: '
                '--skip-existing)'
            ) from error
        if error.errno in _FORBIDDEN:
            raise UserError(
                f'cannot write {path}: {error.strerror.lower()}; make {path.parent} writable, or '
                'choose another folder'
            ) from error
        raise


def shortened(path: str | Path) -> Path:
    """A path whose name was made from the name of another file and may be too long.

    Args:
        path: Any path.

    Returns:
        It, or one whose name has 255 bytes: the beginning, a digest of the whole, the ending.
    """
    path = Path(path)
    name = os.fsencode(path.name)
    if len(name) <= 255:
        return path
    end = f'~{hashlib.sha256(name).hexdigest()[:8]}{path.suffix}'
    return path.with_name(name[: 255 - len(os.fsencode(end))].decode(errors='ignore') + end)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file with :func:`atomic`."""
    with atomic(path) as unfinished:
        unfinished.write_text(text, encoding='utf-8')


def write(content: dict, path: str | Path) -> None:
    """Write a checkpoint as ``torch.save`` does, atomically and with its SHA-256.

    ``torch.load`` reads the file as any other; with its defaults if all is :func:`plain`.

    Raises:
        UserError: If the disk is full or the folder cannot be written to.
    """
    with atomic(path) as unfinished, unfinished.open('wb') as stream:
        sealing = _Sealing(stream)
        try:
            torch.save(content, sealing)
        except RuntimeError as error:  # torch hides what its stream met
            if sealing.error is not None:
                raise sealing.error from error
            raise
        sealing.close()


#: Types that ``torch.load`` takes by default and that need no change.
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)


def plain(value: Any) -> Any:
    """Convert a value into types that ``torch.load`` takes by default.

    Numbers and arrays of NumPy become Python's, mmengine's history buffers dicts, which
    :func:`read` turns back. An object that is nothing of all that stays: torch refuses to read it.
    """
    from mmengine.logging import HistoryBuffer

    kind = type(value)
    if kind in _PLAIN or isinstance(value, Tensor):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, HistoryBuffer):
        history, counts = (torch.from_numpy(np.array(part)) for part in value.data)
        return dict(zip(_HISTORY, (history, counts, value.max_length), strict=True))
    if isinstance(value, Mapping):
        content = {plain(key): plain(item) for key, item in value.items()}
        if kind is not OrderedDict:
            return content
        new = OrderedDict(content)
        new.__dict__.update(value.__dict__)  # the versions in a state dict
        return new
    if isinstance(value, (list, tuple, set)):
        base = next(base for base in (list, tuple, set) if isinstance(value, base))
        return base(plain(item) for item in value)
    return value


#: The keys of a history buffer of mmengine in a file.
_HISTORY = ('log_history', 'count_history', 'max_length')


def _with_histories(content: Any) -> Any:
    """Turn back, in place, the histories of a run's log; older files hold them as they are."""
    hub = content.get('message_hub') if isinstance(content, dict) else None
    scalars = hub.get('log_scalars') if isinstance(hub, dict) else None
    if isinstance(scalars, dict):
        from mmengine.logging import HistoryBuffer

        for name, found in scalars.items():
            if isinstance(found, dict) and set(found) == set(_HISTORY):
                *parts, length = (found[key] for key in _HISTORY)
                scalars[name] = HistoryBuffer(*(part.cpu().numpy() for part in parts), length)
    return content


def write_tensors(tensors: dict[str, Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """Write a ``.safetensors`` file atomically, with the SHA-256 of its contents as metadata.

    Equal tensors and metadata give equal bytes.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = dict(sorted({**metadata, 'sha256': _digest(tensors, metadata)}.items()))
    content = memoryview(save(tensors, metadata))
    end = 8 + int.from_bytes(content[:8], 'little')
    header = json.loads(bytes(content[8:end]))
    header['__metadata__'] = metadata  # sorted; safetensors has them in any order
    text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    with atomic(path) as unfinished, unfinished.open('wb') as stream:
        stream.write(len(text).to_bytes(8, 'little') + text)
        stream.write(content[end:])


def on_disk(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array of zeros in a file that goes with it, in the folder for temporary files.

    Raises:
        OSError: If the disk has no room for it.
    """
    with tempfile.TemporaryFile() as stream:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        os.posix_fallocate(stream.fileno(), 0, size)  # writing to a full disk would be a signal
        return np.memmap(stream, dtype, 'r+', shape=shape)


def release(array: np.ndarray) -> None:
    """Let go of the memory that pages of a file take, if it is one: they are read again."""
    mapped = getattr(array, '_mmap', None)
    if mapped is not None and hasattr(mapped, 'madvise'):  # not on Windows
        array.flush()
        mapped.madvise(mmap.MADV_DONTNEED)


def sweep(folder: str | Path) -> list[str]:
    """Remove what killed processes left unfinished in a folder.

    Files of processes of this machine that still run are left alone.

    Returns:
        The names of the files that were removed.
    """
    removed = []
    for file in Path(folder).glob(f'.*{_UNFINISHED}'):
        process = file.name.rsplit('.', 3)[-3]
        if not (process.isdigit() and int(process) != os.getpid() and _runs(int(process))):
            file.unlink(missing_ok=True)
            removed.append(file.name)
    return removed


class _Sealing:
    """A stream for ``torch.save`` that hashes what passes and appends the digest.

    The archive's last two bytes are the length of its comment; they are held back until the end.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self._held = b''
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        data = memoryview(data)  # of a tensor of gigabytes there shall be no copies
        short = len(data) < 2
        content = self._held + bytes(data if short else data[-2:])
        self._put(content[:-2])
        if not short:
            self._put(data[:-2])
        self._held = content[-2:]
        return len(data)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        if self._held != b'\0\0':
            raise RuntimeError('torch.save did not end in an archive without a comment')
        self._put(struct.pack('<H', _COMMENT_LENGTH))
        self._stream.write(b'sha256:' + self._sha256.hexdigest().encode())

    def _put(self, content: bytes | memoryview) -> None:
        self._sha256.update(content)
        try:
            self._stream.write(content)
        except OSError as error:
            self.error = error
            raise


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# --- reading ---------------------------------------------------------------------------------


def check(path: str | Path) -> Path:
    """Look at the head and the tail of a file of weights, without reading its tensors.

    Returns:
        The file, see :func:`vpt_dense.shipped.place`.

    Raises:
        UserError: If the file is absent, empty, a web page, a Git LFS pointer or truncated.
    """
    file = shipped.place(path)
    if file.is_dir():
        raise UserError(f'checkpoint {path} is a folder; name a file in it')
    if not file.is_file():
        raise UserError(f'checkpoint {path}: no such file (looked in {Path.cwd()})')
    size = file.stat().st_size
    with file.open('rb') as stream:
        head = stream.read(512)
    if size == 0:
        raise UserError(f'checkpoint {path} is empty')
    if _is_safetensors(head):  # before web pages: the length of its header may be ' <'
        complete = _safetensors_size(file) == size
    elif head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b'<':
        raise UserError(f'checkpoint {path} is a web page (HTML), not weights: download it again')
    elif head.startswith(b'version https://git-lfs'):
        raise UserError(f'checkpoint {path} is a Git LFS pointer: run `git lfs pull`')
    elif head.startswith(b'PK\x03\x04'):
        # Saved by torch >= 1.6: a zip archive, whose table of contents stands at the end.
        complete = _is_archive(file)
    else:  # a plain pickle of an older torch, which only reading can check; or nothing of all that
        complete = file.suffix.lower() != '.safetensors'
    if not complete:
        raise UserError(
            f'checkpoint {path} is truncated or damaged ({size:,} bytes): copy or download it '
            'again, or take an earlier one'
        )
    return file


def verify(path: str | Path) -> None:
    """Read a whole file and compare its contents with the checksums in it.

    Raises:
        UserError: If it is not what was written.
    """
    file = check(path)
    if kind(file) in ('safetensors', 'npz'):
        read(path)
    elif _is_archive(file):
        try:
            _verify_archive(file)
        except Exception as error:  # zipfile raises whatever it meets in a damaged file
            if is_programs(error):
                raise
            raise _damaged(path, error) from error
    else:  # a plain pickle of an old torch, without checksums; or zeros, as power failures leave
        read(path)


def allows_code() -> bool:
    """Whether the user allows files to run code."""
    return os.environ.get(ALLOW_PICKLE) == '1'


def read(path: str | Path, map_location: Any = 'cpu') -> Any:
    """Read a file with tensors, numbers and mmengine's history buffers, and nothing else.

    Args:
        path: A file of ``torch.save``, a ``.safetensors`` or an ``.npz`` file, whatever its name
            ends in.
        map_location: As in ``torch.load``.

    Returns:
        What the file holds; of a ``.safetensors`` file ``dict(state_dict=..., meta=...)``, meta
        being its metadata; of an ``.npz`` file the same, with the ``/`` in names turned into dots
        and without metadata.

    Raises:
        UserError: If the file is absent or damaged, or would need to run code; the message names
            the switch that allows it.
    """
    file = check(path)
    found = kind(file)
    if found == 'safetensors':
        return _read_safetensors(file, path, map_location)
    if found == 'npz':
        return _read_npz(file, path)
    if found is None:
        raise _damaged(path, ValueError('neither safetensors nor what torch.save writes'))
    try:
        archive = _is_archive(file)
        if archive and _verify_archive(file):
            raise UserError(
                f'checkpoint {path} is a TorchScript program, not a file of weights; get the '
                "model's state dict, as .safetensors if its publisher has it (OpenAI's CLIP: "
                'timm://vit_base_patch16_clip_quickgelu_224.openai)'
            )
        with file.open('rb') as stream:  # by its name torch would judge a file otherwise
            return _with_histories(_load(stream, map_location))
    except UserError:
        raise
    except Exception as error:  # torch raises whatever its readers meet in a damaged file
        if is_programs(error):
            raise
        _check_reader()
        # The format before the present two, a tar archive, cannot be read without running code.
        if not isinstance(error, pickle.UnpicklingError) and 'legacy .tar' not in str(error):
            raise _damaged(path, error) from error
        if allows_code():
            warnings.warn(
                f'{path} may run any code as you: {ALLOW_PICKLE}=1 is set', stacklevel=2
            )
            with file.open('rb') as stream:
                return torch.load(stream, map_location=map_location, weights_only=False)
        raise UserError(
            f'checkpoint {path} is refused: it is no checkpoint, or would run code when loaded '
            f'({_reason(error)}); get its tensors as .safetensors, or, if you trust whoever wrote '
            f'it with all that you may do on this machine, set {ALLOW_PICKLE}=1'
        ) from error


def _load(stream: BinaryIO, map_location: Any) -> Any:
    from vpt_dense.unpickling import safe_globals

    histories = sys.modules.get('mmengine') is not None
    try:
        with torch.serialization.safe_globals(safe_globals(histories)):
            return torch.load(stream, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:
        if histories or importlib.util.find_spec('mmengine') is None:
            raise
    import mmengine.logging  # noqa: F401 - only what a run of mmengine has written needs it

    stream.seek(0)
    return _load(stream, map_location)


def _check_reader() -> None:
    """Read a file that is sound: where that fails, the reader is at fault and raises."""
    sound = io.BytesIO()
    torch.save({'x': torch.zeros(1)}, sound)
    sound.seek(0)
    _load(sound, 'cpu')


def kind(file: Path) -> str | None:
    """A file's kind by its content: 'safetensors', 'npz', 'archive', 'pickle', or none of these.

    An archive is a zip file, as torch writes since 1.6; a pickle is what it wrote before.
    """
    with file.open('rb') as stream:
        head = stream.read(512)
    if _is_safetensors(head):
        return 'safetensors'
    if _is_archive(file):
        # zipfile raises whatever it meets in a damaged file; reading will tell.
        with contextlib.suppress(Exception), zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if names and all(name.endswith('.npy') for name in names):
                return 'npz'
        return 'archive'
    # The second is a tar archive, older still.
    return 'pickle' if re.match(rb'\x80[\x02-\x05]', head) or head[257:262] == b'ustar' else None


def _is_safetensors(head: bytes) -> bool:
    """Whether a file begins with a length that a header may have, and then the header, JSON."""
    return head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= 100_000_000


def _is_archive(file: Path) -> bool:
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # Python's look at the end of the file is not always prepared for it
        return False


def _damaged(path: str | Path, error: Exception) -> UserError:
    reason = next(iter(str(error).splitlines()), '')[:120] or type(error).__name__
    return UserError(
        f'checkpoint {path} is damaged ({reason}): copy or download it again, or take an earlier '
        'one'
    )


def _verify_archive(file: Path) -> bool:
    """Compare the checksums of a zip archive; return whether it is a TorchScript program."""
    # Opened once: another process may put a newer file in its place meanwhile.
    with file.open('rb') as stream:
        state = os.fstat(stream.fileno())
        identity = (file.resolve(), state.st_ino, state.st_size, state.st_mtime_ns)
        with zipfile.ZipFile(stream) as archive:
            comment = _COMMENT.match(archive.comment)
            if comment is None and identity not in _compared:
                if len(archive.comment) == _COMMENT_LENGTH or _lacks_comment(
                    stream, archive.comment
                ):
                    raise zipfile.BadZipFile('its SHA-256 is damaged')
                # torch does not look at the checksums that the archive has for each tensor.
                broken = archive.testzip()
                if broken:
                    raise zipfile.BadZipFile(f'checksum of {broken} does not match')
            scripted = any(name.endswith('/constants.pkl') for name in archive.namelist())
        if comment is not None and identity not in _compared:
            sha256 = hashlib.sha256()
            left = state.st_size - _COMMENT_LENGTH
            stream.seek(0)
            while left > 0 and (block := stream.read(min(left, 1 << 20))):
                sha256.update(block)
                left -= len(block)
            if sha256.hexdigest() != comment[1].decode():
                raise zipfile.BadZipFile('its SHA-256 does not match its contents')
    _compared.add(identity)
    return scripted


def _lacks_comment(stream: BinaryIO, comment: bytes) -> bool:
    """Whether a part of our comment is there, or none but the archive says that there is one."""
    if comment:
        return b'sha256:'.startswith(comment[:7])
    stream.seek(-2, os.SEEK_END)
    return stream.read() != b'\0\0'


def _read_safetensors(file: Path, path: str | Path, map_location: Any = 'cpu') -> dict:
    from safetensors import SafetensorError, safe_open

    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    try:
        with safe_open(file, framework='pt', device=str(device)) as content:
            metadata = dict(sorted((content.metadata() or {}).items()))
            tensors = {name: content.get_tensor(name) for name in content.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    stated = metadata.pop('sha256', None)
    if stated is None:  # it was never there, or its key has a flipped bit
        lost = any(len(k) == 6 and re.fullmatch('[0-9a-f]{64}', v) for k, v in metadata.items())
        sound = not lost
    else:
        sound = stated == _digest(tensors, metadata)
    if not sound:
        raise _damaged(path, ValueError('its SHA-256 does not match its contents'))
    try:
        tensors = few_bits.unpack(tensors)
    except ValueError as error:
        raise _damaged(path, error) from error
    return dict(state_dict=tensors, meta=_decoded(metadata))


def is_plain_delta(path: Any) -> bool:
    """Whether a file is one of :func:`vpt_dense.save_delta`, by its header."""
    from safetensors import SafetensorError, safe_open

    try:
        if not Path(path).is_file():
            return False
        with safe_open(path, framework='pt') as content:
            return (content.metadata() or {}).get('format') == PLAIN_DELTA
    except (SafetensorError, OSError, ValueError, TypeError):
        return False


def _read_npz(file: Path, path: str | Path) -> dict:
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        reason = str(error).partition('\n')[0][:120]
        hint = (
            'it holds Python objects, which are never unpickled' if 'pickle' in reason else reason
        )
        raise UserError(f'{path} is no .npz file of plain arrays ({hint}): get it again') from error
    others = [f'{name} ({array.dtype})' for name, array in arrays.items()
              if array.dtype.kind not in 'fiub']
    if others:
        raise UserError(f'{path} holds arrays that are no numbers of NumPy: {others[:3]}')
    tensors = {name.replace('/', '.'): torch.from_numpy(array) for name, array in arrays.items()}
    return dict(state_dict=tensors, meta={})


def _decoded(metadata: dict[str, str]) -> dict[str, Any]:
    """Metadata of a safetensors file, which holds strings only; those of a delta are JSON."""
    if not metadata.get('format', '').startswith(DELTA):
        return metadata
    decoded: dict[str, Any] = {}
    for key, value in metadata.items():
        try:
            decoded[key] = value if key in ('format', 'cfg') else json.loads(value)
        except ValueError:
            decoded[key] = value
    return decoded


def _safetensors_size(file: Path) -> int:
    """The size in bytes that a safetensors file should have by its own header; -1 if broken."""
    with file.open('rb') as stream:
        length = int.from_bytes(stream.read(8), 'little')
        try:
            header = json.loads(stream.read(min(length, file.stat().st_size)))
            ends = [entry['data_offsets'][1] for name, entry in header.items() if name[:2] != '__']
            return 8 + length + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError):
            return -1


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors and over metadata."""
    sha256 = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha256.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()


def _reason(error: Exception) -> str:
    """The cause of a failed read, from torch's page-long message."""
    text = ' '.join(str(error).split())
    for pattern in (r'GLOBAL ([\w.]+)', r'but got (.{1,80})', r'WeightsUnpickler error: (.{1,80})'):
        found = re.search(pattern, text)
        if found:
            return found[1]
    return text[:80]
