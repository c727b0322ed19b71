"""Writes generated images and labels as a folder in ADE20K's layout, once and whole."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np


def _write_one(sample: Callable, folder: Path, job: tuple[str, int]) -> None:
    """Writes one image and its label map."""
    cv2.setNumThreads(1)
    split, index = job
    image, labels = sample(split, index)
    for kind, array in (('images', image), ('annotations', labels)):
        path = folder / kind / split / f'{index:05d}.png'
        if not cv2.imwrite(str(path), array):
            raise OSError(f'cannot write {path}')


def is_complete(out: str | os.PathLike, meta: dict) -> bool:
    """Whether a folder already holds exactly this data set.

    Args:
        out: The folder.
        meta: What identifies the data set (name, version, seed, counts), as JSON can hold it.
    """
    try:
        return json.loads((Path(out) / 'meta.json').read_text()) == meta
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False


def write_folder(
    out: str | os.PathLike,
    sample: Callable[[str, int], tuple[np.ndarray, np.ndarray]],
    splits: dict[str, int],
    meta: dict,
    track: Callable | None = None,
    workers: int = 1,
    force: bool = False,
) -> bool:
    """Writes `images/SPLIT/*.png`, `annotations/SPLIT/*.png` and `meta.json`.

    Everything is written beside the target and renamed at the end: the folder is there as a
    whole or not at all. Nothing happens where the same data set is there already; another version
    or seed of it is replaced if that is wanted, anything else is left alone.

    Args:
        out: Folder to make.
        sample: (split, index) -> BGR image (H, W, 3) uint8 and label ids (H, W) uint8; must be
            picklable for more than one worker.
        splits: Split -> number of images.
        meta: What identifies the data set, see :func:`is_complete`; must have a 'name'.
        track: Wraps the iterable of finished images and takes `total=`, for a progress bar.
        workers: Number of processes.
        force: Replace another version or seed of this data set.

    Returns:
        Whether anything was written.

    Raises:
        FileExistsError: If `out` holds something else, or another version or seed of this data set
            that is not to be replaced.
    """
    out = Path(out).absolute()
    if is_complete(out, meta):
        return False
    if out.exists() and any(out.iterdir()):
        try:
            found = json.loads((out / 'meta.json').read_text())['name']
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            found = None
        if found != meta['name']:
            raise FileExistsError(
                f'{out} is not empty and is not a {meta["name"]} data set made by this tool; '
                'name another folder or remove it'
            )
        if not force:
            raise FileExistsError(
                f'{out} is a {found} data set of another version, seed or size; name another '
                'folder, or replace it with --force'
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f'.{out.name}.', dir=out.parent))
    try:
        new.chmod(0o755)
        for split in splits:
            (new / 'images' / split).mkdir(parents=True)
            (new / 'annotations' / split).mkdir(parents=True)
        jobs = [(split, index) for split, count in splits.items() for index in range(count)]
        write = partial(_write_one, sample, new)
        track = track or (lambda done, total: done)
        if workers > 1:
            with ProcessPoolExecutor(workers) as pool:
                for _ in track(pool.map(write, jobs, chunksize=16), total=len(jobs)):
                    pass
        else:
            for _ in track(map(write, jobs), total=len(jobs)):
                pass
        (new / 'meta.json').write_text(json.dumps(meta, indent=1) + '\n')
        if out.exists():
            shutil.rmtree(out)
        os.replace(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return True
