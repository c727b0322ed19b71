"""Deltas on the Hugging Face hub: pushed with a model card, pulled and checked."""

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

from vpt_dense import few_bits, params, safe_files, shipped, tasks
from vpt_dense.checkpoints import deltas
from vpt_dense.errors import UserError, is_programs
from vpt_dense.weights import stored_config
from vpt_dense.weights.base import KEY, Base

#: The delta in a repository, and its config beside it.
DELTA_FILE = 'delta.safetensors'
CONFIG_FILE = 'config.py'


def push(path: str, repo_id: str, private: bool = False, force: bool = False) -> str:
    """Upload a delta with its config and a model card, in one commit.

    Absolute paths stay at home: of those outside the current folder the name goes up. The
    repository is made if it is absent. The token is that of ``hf auth login`` or of
    ``HF_TOKEN``; the hub that of ``HF_ENDPOINT``.

    Args:
        path: A delta.
        repo_id: ``OWNER/NAME``.
        private: Make a new repository private.
        force: Write the model card anew; one that is there stays otherwise, as it may have been
            edited.

    Returns:
        The address of the commit.

    Raises:
        UserError: If the file is no delta, the hub cannot be reached or refuses.
    """
    delta = _read(path)
    _check_name(repo_id)
    changed = _leave_home(delta, path)
    with tempfile.TemporaryDirectory() as folder:
        if changed:
            deltas.write(delta, str(Path(folder, DELTA_FILE)))
        else:
            Path(folder, DELTA_FILE).write_bytes(shipped.place(path).read_bytes())
        Path(folder, CONFIG_FILE).write_text(delta['meta']['cfg'], encoding='utf-8')
        Path(folder, 'README.md').write_text(card(delta, repo_id), encoding='utf-8')
        from huggingface_hub import HfApi

        try:
            api = HfApi(endpoint=os.environ.get('HF_ENDPOINT'))
            api.create_repo(repo_id, private=private or None, exist_ok=True)
            kept = ['README.md'] if not force and api.file_exists(repo_id, 'README.md') else None
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message='Upload a vpt_dense delta',
                ignore_patterns=kept,
            )
        except Exception as error:  # what its network stack raises depends on its version
            if is_programs(error):
                raise
            raise _failed(f'cannot push to {repo_id}', error) from error
    return str(commit.commit_url)


def pull(repo_id: str, out: str, revision: str | None = None) -> None:
    """Download a delta and check it.

    Args:
        repo_id: ``OWNER/NAME``.
        out: Where to write it, a ``.safetensors`` file.
        revision: Branch, tag or commit; None: the main branch.

    Raises:
        UserError: If the hub cannot be reached, has no such delta, or what comes is damaged.
    """
    if Path(out).suffix != '.safetensors':
        raise UserError(f'{out}: deltas are .safetensors files, give it that ending')
    _check_name(repo_id)
    from huggingface_hub import hf_hub_download

    try:
        found = hf_hub_download(
            repo_id, DELTA_FILE, revision=revision, endpoint=os.environ.get('HF_ENDPOINT')
        )
    except Exception as error:  # as above
        if is_programs(error):
            raise
        raise _failed(f'cannot pull {DELTA_FILE} from {repo_id}', error) from error
    try:
        _read(found)
    except UserError as error:
        raise UserError(f'{repo_id}: {error}') from error
    with safe_files.atomic(out) as unfinished:
        unfinished.write_bytes(Path(found).read_bytes())


def card(delta: dict, repo_id: str) -> str:
    """The model card: YAML metadata, then what it is, what it measured and how it is loaded.

    The licence of the delta is left to the user; what is known of that of the base is said.

    Args:
        delta: As :func:`vpt_dense.checkpoints.deltas.read` returns it.
        repo_id: Where it will lie.
    """
    from huggingface_hub import ModelCardData

    meta, state = delta['meta'], delta['state_dict']
    records = [Base.from_tensor(t) for name, t in state.items() if name.endswith(KEY)]
    tensors = {name: tensor for name, tensor in state.items() if not name.endswith(KEY)}
    task = tasks.of({name.partition('.')[0] for name in state})
    header: dict[str, Any] = {
        'library_name': 'vpt_dense',
        **({'pipeline_tag': task.tag} if task and task.tag else {}),
        'tags': ['vpt_dense', 'visual-prompt-tuning', 'delta'],
    }
    on_hub = [hub_name for r in records if (hub_name := _hub_name(r.checkpoint))]
    if on_hub:
        header['base_model'] = on_hub[0]
    method, counts = meta.get('method') or {}, meta.get('counts') or {}
    further = [key for key in ('image_prompt', 'adapters') if method.get(key)]
    keys = ('prompt', *further, 'trainable')
    rows = [(key.replace('_', ' '), _code(method.get(key))) for key in keys]
    for record in records:
        rows += [
            ('base', f'{_code(record.checkpoint)} ({record.layout} layout)'),
            ('SHA-256 of its frozen tensors', _code(record.sha256)),
            ('backbone', record.arch),
        ]
    if meta.get('licence'):
        rows.append(('licence of the base', meta['licence']))
    if counts:
        share = params.format_percent(counts['percent'])
        rows.append(
            ('parameters', f'{counts["trainable"]:,} tuned of {counts["total"]:,} ({share})'))
    stored = deltas.size(few_bits.pack(tensors))
    rows.append(('size', f'{len(tensors):,} tensors, {stored / 1e6:,.2f} MB'))
    rows += [(name, f'{value:.4g}') for name, value in (meta.get('metric') or {}).items()]
    rows += [(key, str(meta[key])) for key in ('iter', 'epoch', 'seed') if key in meta]
    table = '\n'.join(f'| {label} | {text} |' for label, text in rows)
    return f"""---
{ModelCardData(**header).to_yaml()}
---

# {repo_id.rpartition('/')[2]}

What visual prompt tuning with vpt_dense has changed in a pretrained vision transformer: the tuned
tensors only. The frozen ones come from the base named below.

| | |
| --- | --- |
{table}

## How to load it

```bash
python tools/delta.py pull {repo_id} {DELTA_FILE}
python tools/delta.py merge {DELTA_FILE} whole.pth  # --base PATH: where the base lies
```

`{DELTA_FILE}` is also taken wherever a checkpoint is (`tools/test.py`, `load_from`, mmseg's
`init_model`), together with a config, for instance `{CONFIG_FILE}` of this repository.
"""


def _leave_home(delta: dict, path: str) -> bool:
    """Take out of a delta, in place, what is of its run and machine; return whether anything is."""
    meta, state = delta['meta'], delta['state_dict']
    cfg = stored_config.parse(meta['cfg'], path)
    before = cfg.to_dict()
    stored_config.forget_run(cfg, _place)
    changed = cfg.to_dict() != before
    if changed:
        meta['cfg'] = cfg.pretty_text
    for name in [name for name in state if name.endswith(KEY)]:
        record = Base.from_tensor(state[name])
        if os.path.isabs(record.checkpoint):
            record = dataclasses.replace(record, checkpoint=_place(record.checkpoint), path='')
            state[name] = record.to_tensor()
            meta.setdefault('bases', {})[name.removesuffix(KEY)] = dataclasses.asdict(record)
            changed = True
    return changed


def _place(path: str) -> str:
    """An absolute path without private parts: relative to the current folder, or its name alone."""
    inside = Path(path).is_relative_to(Path.cwd())
    return os.path.relpath(path) if inside else Path(path).name


def _read(path: str) -> dict:
    delta = deltas.read(path)
    if not deltas.is_delta(delta) or safe_files.kind(shipped.place(path)) != 'safetensors':
        raise UserError(
            f'{path} is no delta but a whole checkpoint or one of a run: make one with '
            'tools/delta.py extract'
        )
    return delta


def _check_name(repo_id: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        reason = str(error).partition('\n')[0]
        raise UserError(f'REPO_ID {repo_id!r}: write OWNER/NAME ({reason})') from error


def _hub_name(checkpoint: str) -> str | None:
    """The repository of a base that lies on the hub."""
    for scheme in ('hf://', 'hf-hub:', 'hf_hub:'):
        if checkpoint.startswith(scheme):
            owner, name, *_ = [*checkpoint.removeprefix(scheme).split('/'), '']
            return f'{owner}/{name.partition("@")[0]}'
    if checkpoint.startswith('timm://'):
        return f'timm/{checkpoint.removeprefix("timm://")}'
    return None


def _code(value: Any) -> str:
    if isinstance(value, dict):
        value = ', '.join(f'{key}={item!r}' for key, item in value.items())
    return f'`{value}`' if value else 'none'


def _failed(what: str, error: Exception) -> UserError:
    kind, reason = type(error).__name__, ' '.join(str(error).split()) or type(error).__name__
    if kind in ('RepositoryNotFoundError', 'RevisionNotFoundError', 'RemoteEntryNotFoundError'):
        hint = 'look at its name and revision, and at HF_TOKEN if it is private'
    elif '401' in reason or '403' in reason or 'token' in reason.lower():
        hint = 'log in with `hf auth login` or set HF_TOKEN'
    else:
        hint = 'it needs the network, or HF_ENDPOINT of a hub within reach'
    return UserError(f'{what}: {reason[:200]} ({kind}); {hint}')
