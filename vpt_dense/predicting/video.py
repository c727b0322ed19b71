"""Videos: the labels of every frame drawn over it, as a video; a few frames are in memory."""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from vpt_dense import safe_files, tasks, visualization
from vpt_dense.datasets import raster
from vpt_dense.errors import UserError
from vpt_dense.predicting import writing
from vpt_dense.predicting.inputs import Image
from vpt_dense.predicting.results import Predictor

#: What the names of videos end in.
SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')
#: MPEG-4 in .mp4: the codec that OpenCV's own wheels bring along.
_CODEC = 'mp4v'
FOLDER = 'videos'


class Source(NamedTuple):
    """What becomes one video.

    Attributes:
        path: A video, or the folder that the frames have in common.
        name: Of the result, without suffix.
        frames: The images, in their order; None: those of the video.
        rate: Frames a second of the result; None: the video's.
    """

    path: str
    name: str
    frames: Sequence[Image] | None = None
    rate: float | None = None


def is_video(path: str) -> bool:
    """Whether a path is named as videos are."""
    return path.lower().endswith(SUFFIXES)


def find(paths: Sequence[str]) -> list[Source]:
    """Videos by their paths.

    Raises:
        UserError: If one of them is none or is not there, or two have the same name.
    """
    others = [path for path in paths if not is_video(path)]
    if others:
        raise UserError(
            f'{others[0]} is no video ({", ".join(SUFFIXES)}), the others are: predict images and '
            'videos one after the other; a folder of frames is made a video by --video FPS')
    lacking = [path for path in paths if not os.path.isfile(path)]
    if lacking:
        raise UserError(f'{lacking[0]}: no such file (from {os.getcwd()})')
    sources = [Source(path, Path(path).stem) for path in paths]
    if len({source.name for source in sources}) < len(sources):
        raise UserError(f'two videos have the same name: {", ".join(paths)}; take two --out')
    return sources


def write(
    predictor: Predictor, sources: Sequence[Source], out: str | Path, wanted: writing.Wanted
) -> dict[str, Any]:
    """Predict every frame and write ``videos/NAME.mp4`` for each source.

    Beside it lies ``NAME_legend.png``, the colours of the classes. ``summary.json`` has the frames,
    the seconds and the frames a second of each, the pixels of every class and the model.

    Args:
        predictor: Of segmentation.
        sources: See :func:`find`.
        out: The folder to write to.
        wanted: ``batch_size``, ``skip_existing`` and ``force`` as for images.

    Returns:
        What ``summary.json`` holds.

    Raises:
        UserError: If the model is of another task, something is wanted that videos have not, a
            video cannot be read or written, or frames differ in size. Of a video there is then
            nothing, or the old one.
    """
    out, task = Path(out), tasks.TASKS[predictor.task]
    if not (task.dense and task.classes):
        raise UserError(f'a video is for segmentation, this model is of {task.name}; cut it into '
                        'images')
    for key in ('probabilities', 'dtype', 'top_k'):
        if getattr(wanted, key):
            raise UserError(f'--{key.replace("_", "-")} is for images; cut the video into images')
    writing.check_out(out, wanted.skip_existing, wanted.force)
    about = predictor.describe()
    if wanted.skip_existing:
        writing.check_same(out, about)
    old = writing.read_summary(out).get('videos', []) if wanted.skip_existing else []
    known = {each['out']: each for each in old if (out / each['out']).is_file()}
    videos = []
    for source in sources:
        name = f'{FOLDER}/{source.name}.mp4'
        if name in known and known[name]['path'] == source.path:
            videos.append(known[name])
        else:
            videos.append(_one(predictor, source, out, name, wanted))
        record = dict(task=predictor.task, finished=len(videos) == len(sources), videos=videos,
                      **about)
        safe_files.write_text(out / writing.SUMMARY, writing.as_json(record))
    return record


def _one(
    predictor: Predictor, source: Source, out: Path, name: str, wanted: writing.Wanted
) -> dict[str, Any]:
    """Write one video, and return what is said of it."""
    path = out / name
    labels = np.full(max(*predictor.ids, predictor.ignored_id) + 1, -1)
    labels[list(predictor.ids)] = range(len(predictor.ids))
    waiting: deque[np.ndarray] = deque()  # frames whose labels are not there yet
    pixels = np.zeros(len(predictor.classes), np.int64)
    done, predicting, started = 0, 0.0, time.monotonic()
    with contextlib.ExitStack() as stack:
        rate, expected, frames = _open(source, stack)

        def kept() -> Iterator[Any]:
            for shown, given in frames:
                waiting.append(shown)
                yield given

        results = stack.enter_context(
            contextlib.closing(predictor.stream(kept(), False, wanted.batch_size)))
        writer = None
        with writing.progress(expected or 0, 'frames') as bar:
            while True:
                before = time.monotonic()
                result = next(results, None)
                predicting += time.monotonic() - before
                if result is None:
                    break
                if isinstance(result, Exception):
                    raise UserError(f'{source.path}, frame {done}: {result}')
                frame = waiting.popleft()
                if writer is None:
                    size = frame.shape[1::-1]
                    writer = stack.enter_context(_Writer(path, rate, size))
                drawn = visualization.draw_labels(
                    visualization.to_picture(frame), labels[result.labels], result.classes,
                    predictor.palette, ignore_index=-1, legend=False)
                writer.put(drawn, f'{source.path}, frame {done}')
                pixels += result.pixels()
                done += 1
                bar.step()
        if writer is None:
            raise UserError(f'{source.path}: no frame could be read')
        if expected and done < expected:
            print(f'warning: {source.path} says that it has {expected:,} frames, {done:,} could be '
                  'read', file=sys.stderr, flush=True)
        writer.finish(done)
    _write_legend(path.with_name(f'{source.name}_legend.png'), predictor)
    seconds = time.monotonic() - started
    return dict(
        path=source.path, out=name, frames=done, frames_said=expected, rate=round(rate, 3),
        size=list(size), seconds=round(seconds, 2),
        frames_per_second=round(done / max(seconds, 1e-9), 2),
        predicted_per_second=round(done / max(predicting, 1e-9), 2),
        pixels=dict(zip(predictor.classes, pixels.tolist(), strict=True)))


def _open(
    source: Source, stack: contextlib.ExitStack
) -> tuple[float, int | None, Iterable[tuple[np.ndarray, Any]]]:
    """Frames a second, how many are said to come, and (RGB to draw on, what is predicted)."""
    if source.frames is not None:
        pairs = ((raster.read_image(image.path), image.path) for image in source.frames)
        return float(source.rate), len(source.frames), pairs
    capture = cv2.VideoCapture(source.path)
    stack.callback(capture.release)
    if not capture.isOpened():
        raise UserError(f'{source.path}: no video that OpenCV can read, or a damaged one')
    rate = source.rate or capture.get(cv2.CAP_PROP_FPS)
    if not 0 < rate < 1000:
        raise UserError(f'{source.path} does not say how many frames a second it has; say it: '
                        '--video FPS')

    def frames() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            there, frame = capture.read()
            if not there:
                return
            frame = np.ascontiguousarray(frame[..., ::-1])
            yield frame, frame

    return rate, max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) or None, frames()


class _Writer:
    """OpenCV's writer of a video that gets its name when it is whole."""

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        self.path, self.rate, self.size = path, rate, size
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> '_Writer':
        self.unfinished = self.stack.enter_context(safe_files.atomic(self.path))
        # OpenCV chooses the container by the suffix.
        self.part = self.unfinished.with_name(f'{self.unfinished.name}.mp4')
        self.writer = cv2.VideoWriter(
            str(self.part), cv2.VideoWriter_fourcc(*_CODEC), self.rate, self.size)
        if not self.writer.isOpened():
            self.__exit__(*sys.exc_info())
            raise UserError(f'{self.path} cannot be written: this OpenCV has no codec {_CODEC}, or '
                            'the folder takes no file')
        self.whole = False
        return self

    def put(self, picture: np.ndarray, name: str) -> None:
        """Write an RGB frame."""
        if picture.shape[1::-1] != tuple(self.size):
            raise UserError(
                f'{name} has {picture.shape[1]}x{picture.shape[0]} pixels, the first one '
                f'{self.size[0]}x{self.size[1]}; frames of a video are of one size')
        self.writer.write(picture[..., ::-1])

    def finish(self, frames: int) -> None:
        """Look whether all is there: OpenCV says nothing of a disk that is full."""
        self.writer.release()
        written = cv2.VideoCapture(str(self.part))
        found = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        if found != frames:
            raise UserError(f'{self.path} could not be written whole ({found} of {frames} frames); '
                            'is the disk full?')
        os.replace(self.part, self.unfinished)
        self.whole = True

    def __exit__(self, *error: Any) -> None:
        self.writer.release()
        self.part.unlink(missing_ok=True)
        if error[0] is None and not self.whole:  # nothing that is half gets a name
            error = (UserError, UserError(f'{self.path} is not finished'), None)
        self.stack.__exit__(*error)


def _write_legend(path: Path, predictor: Predictor) -> None:
    """A strip of all colours, and what they are."""
    labels = np.repeat(np.arange(len(predictor.classes)), 8)[None].repeat(16, 0)
    picture = visualization.draw_labels(
        np.full((*labels.shape, 3), 255, np.uint8), labels, predictor.classes, predictor.palette,
        ignore_index=None, alpha=1.0)
    with safe_files.atomic(path) as unfinished:
        unfinished.write_bytes(cv2.imencode('.png', picture[..., ::-1])[1])
