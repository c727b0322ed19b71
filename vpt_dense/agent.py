"""torchrun's agent, with the signals and exit codes of a single process."""

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

import torch.distributed.launcher.api
from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server import WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.api import RunResult
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError

from vpt_dense import errors, preemption

#: Seconds for the other processes to end by themselves when one has ended in an error.
GRACE = 10
#: Exit codes on which starting again would change nothing: of a user's error, a preemption, Ctrl-C.
FINAL = (errors.USER_ERROR, preemption.EXIT_CODE, errors.INTERRUPTED)


class Agent(LocalElasticAgent):
    """Starts, watches and starts again the processes of this machine.

    - A signal goes to the processes, which save and leave, however long that takes; after it
      nothing is started again.
    - The others get time to say what is wrong when one has ended in an error; none, if it was
      killed, as they would only say that they have lost it.
    - Errors of the user, told by their exit code, are not tried again.
    """

    #: Exit codes of those processes that have ended in an error, negative: by a signal.
    codes: list[int] = []
    running = failed = False
    interrupted = False  # by Ctrl-C
    _told: str | None = None  # the signal that has been handed on
    _deadline: float | None = None

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        preemption.hold()  # handed on, as soon as they run
        Agent.running, Agent.codes = True, []
        self._told = self._deadline = None
        return super()._start_workers(worker_group)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        self._stop_workers(worker_group)
        # Until all have come together again, which other machines may delay.
        Agent.running = False
        preemption.leave_at_once('between two starts: go on from the last checkpoint with --resume')
        super()._restart_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        processes = [handler.proc for handler in self._pcontext.subprocess_handlers.values()]
        asked = 'SIGINT' if Agent.interrupted else preemption.received()
        if asked != self._told:
            self._told = asked
            for process in processes:
                process.send_signal(signal.Signals[asked])  # does nothing if it has ended
            if Agent.interrupted:
                self._deadline = time.monotonic() + GRACE
        running = [process for process in processes if process.poll() is None]
        codes = [process.returncode for process in processes if process.returncode]
        if codes and self._deadline is None:
            # After a preemption all end at once: they have agreed on it.
            self._deadline = time.monotonic() + (GRACE if max(codes) > 0 else 0)
        if running:
            if self._deadline is None or time.monotonic() < self._deadline:
                return RunResult(state=WorkerState.HEALTHY)
            self._pcontext.close(signal.SIGKILL)
        result = super()._monitor_workers(worker_group)
        if result.is_failed():
            Agent.codes = codes
            if asked or set(codes) & set(FINAL):
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                self._tell(codes)
        return result

    def _tell(self, codes: list[int]) -> None:
        limit = self._worker_group.spec.max_restarts
        what = describe(codes) or 'a process has ended in an error'
        print(f'warning: {what}; starting all again, from the last checkpoint of this run '
              f'({limit - self._remaining_restarts + 1} of {limit} times)', file=sys.stderr)


def describe(codes: list[int]) -> str | None:
    """What ended processes that have reported nothing: they were killed.

    Those that then report that they have lost the killed one are not the cause.
    """
    if -signal.SIGKILL in codes:
        return 'a process was killed (SIGKILL)'
    if codes and all(code < 0 for code in codes):
        return f'a process was killed ({signal.Signals(-codes[0]).name})'
    return None


def run(arguments: list[str]) -> NoReturn:
    """Run torchrun and exit as its processes do.

    Args:
        arguments: Of torchrun's command line.

    Raises:
        UserError: If the machines do not come together.
        KeyboardInterrupt: If Ctrl-C comes before the processes run.
    """
    torch.distributed.launcher.api.LocalElasticAgent = Agent
    # A store for each start: in one that the starts share the processes may find addresses of
    # those that are dead (https://github.com/pytorch/pytorch/issues/135712).
    os.environ['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'
    if 'LOGLEVEL' not in os.environ:  # torchrun's; the processes say what is wrong
        logging.disable(logging.ERROR)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):  # of the terminal
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup does
            signal.signal(number, _interrupt)
    caught = []

    def work() -> None:
        try:
            torchrun.run(torchrun.parse_args(arguments))
        except (ChildFailedError, RendezvousClosedError):  # the latter: by another machine
            Agent.failed = True
        except BaseException as error:
            caught.append(error)

    # In a thread: in the main one torchrun would answer the signals itself.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():  # a signal that another thread has received is answered in between
        thread.join(0.2)
    for error in caught:
        if isinstance(error, RendezvousError):
            raise errors.UserError(f'the machines do not come together: {error}') from error
        raise error
    sys.exit(_exit_code(Agent.codes) if Agent.failed else 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Tell the processes, which are of sessions of their own; or leave, if there are none."""
    if not Agent.running:
        raise KeyboardInterrupt
    Agent.interrupted = True


def _exit_code(codes: list[int]) -> int:
    if preemption.EXIT_CODE in codes:
        return preemption.EXIT_CODE
    if Agent.interrupted:
        return errors.INTERRUPTED
    message = describe(codes)
    if message is None:
        return max(codes, default=1)
    asked = preemption.received()
    if asked and -signal.Signals[asked] in codes:  # it did not listen yet
        preemption.leave(f'preempted ({asked}): nothing new was saved')
    if -signal.SIGKILL in codes:
        message += (', as the system does when memory runs out; lower '
                    'train_dataloader.batch_size, or use --amp')
    print(f'error: {message}', file=sys.stderr)
    return 1
