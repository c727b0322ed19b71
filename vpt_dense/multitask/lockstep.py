"""Models that share frozen weights, run in lockstep: each weight meets the tokens of all at once.

Each model runs its own code, in a thread of its own, one of them at a time. Where it comes to a
linear layer or a convolution whose weight is shared, it waits. When all wait, the layer that comes
first in the backbone is computed, once for all that wait there, and these go on. What belongs to a
model alone (prompts, attention, low-rank updates, scales, heads) it computes itself, between two
such places. So every method is what it is alone, images of any sizes may meet, and nothing of a
method or of a family of backbones has to be known here.

On a CPU a product of many rows is as fast without those of others, while threads that take turns
lose what the caches hold. There jobs may run one after the other in the thread of the caller; what
they share (see :func:`once`) is computed by the first one that comes to it.
"""

import copy
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.amp import is_autocast_available
from torch.overrides import TorchFunctionMode


class _Now(threading.local):
    """The job that this thread is."""

    job: '_Job | _InTurn | None' = None


_NOW = _Now()


class _Leave(BaseException):
    """Ends a job, since another has failed."""


class Request(NamedTuple):
    """A call that waits for others of the same weight.

    Attributes:
        place: Of the weight, in the order of the backbone.
        key: What calls have in common that are computed together.
        function: ``F.linear`` or ``F.conv2d``.
        x: The tokens (..., C), or images (B, C, H, W).
        weight: The shared weight, or a part of its rows.
        bias: Shared or not, or None.
        further: Further arguments.
        half: The type of autocast on the device of ``x``; None: it is off.
    """

    place: int
    key: tuple
    function: Callable[..., Tensor]
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    further: dict[str, Any]
    half: torch.dtype | None


class _Once:
    """What one job computes for all."""

    done = failed = False
    result: Tensor | None = None


class _Failed(NamedTuple):
    """The answer to a call that cannot be computed."""

    error: Exception


class _Job:
    """A function in a thread that stops where it must wait for others."""

    def __init__(self, meeting: 'Meeting', function: Callable[[], Any]) -> None:
        self.meeting, self.function = meeting, function
        self.asks: Request | _Once | None = None
        self.answer: Any = None
        self.error: BaseException | None = None
        self.ended = self.leaves = False
        self.go = threading.Semaphore(0)
        #: mmengine's default scopes, which are one dict for all threads.
        self.scopes: dict = copy.copy(_scopes())
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        _NOW.job = self
        self.go.acquire()
        try:
            if not self.leaves:
                with self.meeting.as_called(), Watch(self.meeting):
                    self.answer = self.function()
        except _Leave:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.ended = True
            self.meeting.back.release()

    def ask(self, asked: 'Request | _Once') -> Any:
        """Wait for an answer; called in the thread."""
        self.asks = asked
        self.meeting.back.release()
        self.go.acquire()
        if self.leaves:
            raise _Leave
        answer, self.answer = self.answer, None
        if isinstance(answer, _Failed):
            raise answer.error
        return answer

    def resume(self) -> None:
        """Let the thread go on until it ends or waits again."""
        before, self.asks = _scopes(), None
        _set_scopes(self.scopes)
        self.go.release()
        self.meeting.back.acquire()
        self.scopes = _scopes()
        _set_scopes(before)


class _InTurn:
    """Stands for each job of those that run one after the other: it waits for nobody."""

    def __init__(self, meeting: 'Meeting') -> None:
        self.meeting = meeting


class Meeting:
    """Jobs in lockstep, or one after the other.

    Args:
        frozen: Storage of a shared tensor (``untyped_storage().data_ptr()``) -> its place in the
            order of the backbone.
        functions: The jobs.
        in_turn: Whether they run one after the other.
        casts: Whether shared weights may be cast where they are used, which is done once for all.
    """

    def __init__(
        self, frozen: Mapping[int, int], functions: Sequence[Callable[[], Any]],
        in_turn: bool = False, casts: bool = True,
    ) -> None:
        self.frozen, self.in_turn, self.casts_weights = dict(frozen), in_turn, casts
        self.back = threading.Semaphore(0)
        self.casts: dict[tuple, Tensor] = {}
        self.shared: dict[tuple, _Once] = {}
        self.seen: dict[int, Tensor] = {}
        self._number = 0
        kinds = [kind for kind in ('cpu', 'cuda') if is_autocast_available(kind)]
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in kinds]
        self._stream = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self._stream = torch.cuda.current_stream()
        self.jobs = [_Job(self, function) for function in functions]

    @contextmanager
    def as_called(self) -> Iterator[None]:
        """What is of a thread, as it is where the meeting was called: autocast, the GPU's stream.

        Without gradients, which would go from one job's graph to another's.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for kind, dtype, enabled in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled=enabled))
            if self._stream is not None:
                stack.enter_context(torch.cuda.stream(self._stream))
            yield

    def run(self) -> list[Any]:
        """The results of the jobs, in their order; an error of one ends all."""
        if self.in_turn:
            return self._run_in_turn()
        for job in self.jobs:
            job.thread.start()
        try:
            ready = list(self.jobs)
            while ready:
                for job in ready:
                    job.resume()
                    if job.error is not None:
                        raise job.error
                ready = self._serve([job for job in self.jobs if job.asks is not None])
            if not all(job.ended for job in self.jobs):
                raise RuntimeError('models that run in lockstep wait for each other')
        finally:
            for job in self.jobs:
                while not job.ended:
                    job.leaves = True
                    job.resume()
                job.thread.join()
        return [job.answer for job in self.jobs]

    def _run_in_turn(self) -> list[Any]:
        before, _NOW.job = _NOW.job, _InTurn(self)
        try:
            # A mode looks at each operation, which took 4 % of a DeiT-S's blocks.
            with self.as_called(), Watch(self) if self.casts_weights else nullcontext():
                return [job.function() for job in self.jobs]
        finally:
            _NOW.job = before

    def _serve(self, waiting: list[_Job]) -> list[_Job]:
        """Answer some of the jobs that wait; those that can go on."""
        ready = [job for job in waiting if isinstance(job.asks, _Once) and job.asks.done]
        if ready:  # they may come to where the others are
            return ready
        calls = [job for job in waiting if isinstance(job.asks, Request)]
        place = min((job.asks.place for job in calls), default=None)
        groups: dict[tuple, list[_Job]] = {}
        for job in calls:
            if job.asks.place == place:
                groups.setdefault(job.asks.key, []).append(job)
        for group in groups.values():
            try:
                answers = together([job.asks for job in group])
            except Exception as error:  # each job deals with it as if it was alone
                answers = [_Failed(error)] * len(group)
            for job, answer in zip(group, answers, strict=True):
                job.answer = answer
        return [job for group in groups.values() for job in group]

    def find(self, images: Tensor) -> int | None:
        """The number of images that are equal to these; None: there are none."""
        return next((
            i for i, other in self.seen.items() if other is images or (
                other.shape == images.shape and other.dtype == images.dtype
                and other.device == images.device and torch.equal(other, images))), None)

    def which(self, images: Tensor) -> int:
        """The number of these images in this meeting; equal ones have the same.

        Of images that were seen long ago what was computed is forgotten.
        """
        found = self.find(images)
        if found is not None:
            return found
        while len(self.seen) > len(self.jobs):
            oldest = next(iter(self.seen))
            del self.seen[oldest]
            for key in [key for key in self.shared if key[0] == oldest]:
                del self.shared[key]
        self._number += 1
        self.seen[self._number] = images
        return self._number


def current() -> Meeting | None:
    """The meeting that this thread is a job of."""
    return None if _NOW.job is None else _NOW.job.meeting


def once(key: tuple, function: Callable[[], Tensor]) -> Tensor:
    """Have one job of this thread's meeting compute what all need that ask with the same key.

    Args:
        key: Of the result; its first part is the number of the images, see :meth:`Meeting.which`.
        function: Computes it.
    """
    job = _NOW.job
    shared = job.meeting.shared
    while True:
        found = shared.get(key)
        if found is None:
            found = shared[key] = _Once()
            try:
                found.result = function()
            except BaseException:
                found.failed = True
                shared.pop(key, None)
                raise
            finally:
                found.done = True
        elif not found.done:
            job.ask(found)
        if not found.failed:
            return found.result


def patches(
    options: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """A convolution's ``_conv_forward``: jobs in turn that get equal images compute it once.

    Args:
        options: Of ``F.conv2d``; not the module, which would then hold itself in memory.
        x: What it gets, (B, C, H, W); looked for among the images of the meeting.
        weight: Its own, which is shared.
        bias: Its own.
    """
    compute = partial(F.conv2d, x, weight, bias, **options)
    job = _NOW.job
    number = job.meeting.find(x) if isinstance(job, _InTurn) else None
    if number is None:
        return compute()
    key = (number, 'patches', _where(weight), None if bias is None else _where(bias),
           repr(sorted(options.items())))  # fmt: skip
    return once(key, compute).clone()


class Watch(TorchFunctionMode):
    """Sends calls with a shared weight to a meeting."""

    def __init__(self, meeting: Meeting) -> None:
        super().__init__()
        self.meeting = meeting

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (F.conv2d, F.linear) and not self.meeting.in_turn:
            request = self._request(func, *args, **kwargs)
            if request is not None:
                return _NOW.job.ask(request)
        elif func is torch.Tensor.to and len(args) == 2 and isinstance(args[1], torch.dtype):
            place = self._place(args[0])
            if place is not None and not kwargs and args[0].dtype != args[1]:
                return self._cast(args[0], args[1], place)
        return func(*args, **kwargs)

    def _request(
        self, func: Callable, input: Tensor, weight: Tensor, bias: Tensor | None = None,
        *args: Any, **further: Any,
    ) -> Request | None:
        place = self._place(weight)
        if place is None or (func is F.conv2d and input.ndim != 4):
            return None
        names = ('stride', 'padding', 'dilation', 'groups')
        further = {**dict(zip(names, args, strict=False)), **further}
        kind = input.device.type
        half = torch.get_autocast_dtype(kind) if (
            is_autocast_available(kind) and torch.is_autocast_enabled(kind)) else None
        shape = None if func is F.linear else input.shape[1:]
        key = (func, *_where(weight), bias is None, input.dtype, shape, half,
               repr(sorted(further.items())))
        return Request(place, key, func, input, weight, bias, further, half)

    def _place(self, tensor: Any) -> int | None:
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            return None
        return self.meeting.frozen.get(tensor.untyped_storage().data_ptr())

    def _cast(self, weight: Tensor, dtype: torch.dtype, place: int) -> Tensor:
        """Cast a shared weight once for all."""
        key = (*_where(weight), dtype)
        found = self.meeting.casts.get(key)
        if found is None:
            found = self.meeting.casts[key] = weight.to(dtype)
            self.meeting.frozen[found.untyped_storage().data_ptr()] = place
        return found


def together(requests: Sequence[Request]) -> list[Tensor]:
    """Compute calls of one weight as one call; alone, a call is what it is.

    Returns:
        The results, one for each request.
    """
    first = requests[0]
    with ExitStack() as stack:
        if first.half is not None:
            stack.enter_context(torch.autocast(first.x.device.type, first.half))
        elif is_autocast_available(first.x.device.type):
            stack.enter_context(torch.autocast(first.x.device.type, enabled=False))
        stack.enter_context(torch.no_grad())
        if len(requests) == 1:
            return [first.function(first.x, first.weight, first.bias, **first.further)]
        biases = {None if r.bias is None else _where(r.bias) for r in requests}
        of_all = first.bias if len(biases) == 1 else None
        distinct: dict[tuple, Tensor] = {}
        for request in requests:
            distinct.setdefault(_where(request.x), request.x)
        linear = first.function is F.linear
        parts = [x.reshape(-1, x.shape[-1]) if linear else x for x in distinct.values()]
        out = first.function(
            parts[0] if len(parts) == 1 else torch.cat(parts), first.weight, of_all,
            **first.further)
        made = dict(zip(distinct, out.split([len(part) for part in parts]), strict=True))
        answers, taken = [], set()
        for request in requests:
            key = _where(request.x)
            answer = made[key]
            if of_all is None and request.bias is not None:
                bias = request.bias if linear else request.bias[:, None, None]
                answer = answer + bias.to(answer.dtype)
            elif key in taken:  # nobody changes what another has
                answer = answer.clone()
            taken.add(key)
            answers.append(answer.view(*request.x.shape[:-1], -1) if linear else answer)
        return answers


def _where(tensor: Tensor) -> tuple:
    """What says which numbers in memory a tensor is."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _scopes() -> dict:
    registry = sys.modules.get('mmengine.registry')
    return {} if registry is None else registry.DefaultScope._instance_dict


def _set_scopes(scopes: dict) -> None:
    registry = sys.modules.get('mmengine.registry')
    if registry is not None:
        registry.DefaultScope._instance_dict = scopes
