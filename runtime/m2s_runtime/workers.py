"""Where the cases of a run are done: in supervised processes, one for each device, or here and now.

A process that dies or hangs takes one case with it. It is replaced, and the other cases of its source go on.
"""

import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final, Literal, Protocol

from m2s_runtime.errors import EngineError
from m2s_runtime.inputs import Source
from m2s_runtime.journal import Row
from m2s_runtime.outcome import Outcome
from m2s_runtime.task import CRASHED, TIMEOUT, Bound, Task, TaskSpec, lost
from m2s_runtime.worker import Ended, Job, Message, Note, serve

_FOREVER: Final = float("inf")
_FAREWELL_SECONDS: Final = 5.0
_LONGEST_SECONDS: Final = 1e6
"""A longer time-out is none: systems cannot wait for more than 24 days at a time."""


class Pool(Protocol):
    """Does sources, by whatever means: `open`, then `outcomes`, then `close`."""

    def open(self) -> Bound:
        """Bind bundle and engines.

        Raises:
            BundleError, EngineError, UsageProblem: as `task.Task` does.
        """
        ...

    def outcomes(self, sources: Iterable[Source]) -> Iterator[Outcome | None]:
        """Do each source: its outcomes, as they come, then None.

        Raises:
            Stop: what no other case would survive either.
        """
        ...

    def close(self) -> None:
        """Let go of everything, whatever is under way. At any time, any number of times."""
        ...


class Inline:
    """Does the cases in this process; one that hangs or crashes takes the run with it."""

    def __init__(self, spec: TaskSpec) -> None:
        self._spec = spec

    def open(self) -> Bound:
        """See `Pool.open`."""
        self._task = Task(self._spec)
        return self._task.bound

    def outcomes(self, sources: Iterable[Source]) -> Iterator[Outcome | None]:
        """See `Pool.outcomes`."""
        for source in sources:
            yield from self._task.outcomes(source)
            yield None

    def close(self) -> None:
        """There is nothing to let go of."""


@dataclass
class _Worker:
    """A process and what it is about."""

    process: BaseProcess
    pipe: Connection
    bound: Bound | None = None
    job: Job | None = None
    row: Row | None = None
    """The case under way, from when the process tells until its outcome."""
    deadline: float = _FOREVER

    def stop(self, patience: float) -> None:
        """End the process, after so many seconds by force."""
        self.pipe.close()
        if patience:
            self.process.join(patience)
        self.process.kill()
        self.process.join(_FAREWELL_SECONDS)  # no longer: a process may wait for a dead disk


class Workers:
    """Supervised processes, one for each spec; each has a single source at a time, so that nothing piles up."""

    def __init__(self, specs: Sequence[TaskSpec], timeout: float, say: Callable[[str], None]) -> None:
        """Prepare; `timeout` is in seconds a case, 0 for none; `say` hears what libraries have to say."""
        self._specs, self._say = specs, say
        self._timeout = timeout if 0 < timeout <= _LONGEST_SECONDS else _FOREVER
        self._workers: list[_Worker | None] = [None] * len(specs)
        self._again: deque[Job] = deque()
        self._bound: Bound | None = None

    def open(self) -> Bound:
        """See `Pool.open`."""
        self._workers = [_start(spec) for spec in self._specs]
        bound = [self._greet(index, worker) for index, worker in enumerate(self._workers) if worker]
        return bound[0]

    def _greet(self, index: int, worker: _Worker) -> Bound:
        while worker.bound is None:
            for _ in self._hear(index, worker):  # nothing was asked of it yet
                pass
        return worker.bound

    def outcomes(self, sources: Iterable[Source]) -> Iterator[Outcome | None]:
        """See `Pool.outcomes`."""
        fresh = map(Job, sources)
        while True:
            for index in range(len(self._workers)):
                self._occupy(index, fresh)
            busy = [(i, worker) for i, worker in enumerate(self._workers) if worker and worker.job]
            if not busy:
                return
            first = min(worker.deadline for _, worker in busy)
            patience = None if first == _FOREVER else max(first - time.monotonic(), 0.0)
            ready = connection.wait([worker.pipe for _, worker in busy], patience)
            for index, worker in busy:
                if worker.pipe in ready:
                    yield from self._hear(index, worker)
                elif worker.deadline < time.monotonic():
                    yield from self._lose(index, worker, TIMEOUT)

    def close(self) -> None:
        """See `Pool.close`."""
        workers = [worker for worker in self._workers if worker]
        self._workers = [None] * len(self._specs)
        for worker in workers:
            if worker.job or not worker.bound:
                worker.process.kill()
        for worker in workers:
            worker.stop(_FAREWELL_SECONDS)
            if worker.job and worker.bound:
                case = worker.row.case if worker.row else worker.job.source.case
                worker.bound.journal(self._specs[0].out).sweep(case)

    def _occupy(self, index: int, fresh: Iterator[Job]) -> None:
        """Give an idle worker the next job, if there is one; a worker that died idle is replaced."""
        worker = self._workers[index]
        if worker and worker.job:
            return
        job = self._again.popleft() if self._again else next(fresh, None)
        if job is None:
            return
        if worker is None or not worker.process.is_alive():
            worker = self._workers[index] = _start(self._specs[index])
        worker.job = job
        worker.deadline = time.monotonic() + self._timeout if worker.bound else _FOREVER
        try:
            worker.pipe.send(job)
        except OSError:  # it has just died: hearing it will tell
            return

    def _hear(self, index: int, worker: _Worker) -> Iterator[Outcome | None]:
        try:
            message: Message = worker.pipe.recv()
        except (EOFError, OSError):
            yield from self._lose(index, worker, CRASHED)
            return
        worker.deadline = time.monotonic() + self._timeout
        if isinstance(message, Ended):
            raise message.error()
        if isinstance(message, Bound):
            self._agree(worker, message)
        elif isinstance(message, Note):
            self._say(message.text)
        elif isinstance(message, Row):
            worker.row = message
        else:
            worker.row = None
            worker.job = worker.job.without(message.row.case) if worker.job and message else None
            yield message

    def _agree(self, worker: _Worker, bound: Bound) -> None:
        """Take note of what a process was bound to; all must make the same of a case, those that replace others too."""
        worker.bound = bound
        self._bound = self._bound or bound
        if bound.fingerprint != self._bound.fingerprint:
            raise EngineError(
                f"the processes do not agree: one is bound to {self._bound.engine['description']}, another to "
                f"{bound.engine['description']}; name --engine and use one kind of --device"
            )

    def _lose(self, index: int, worker: _Worker, error: Literal["crashed", "timeout"]) -> Iterator[Outcome | None]:
        """Record the case that a worker was lost with, and see to the rest of its source."""
        self._workers[index] = None
        worker.stop(0.0 if error == TIMEOUT else _FAREWELL_SECONDS)  # to learn how it ended
        if worker.job is None or worker.bound is None:
            raise EngineError(
                f"the process for --device {self._specs[index].device} died while it loaded bundle and engine "
                f"({_ending(worker.process)}); with --jobs 0 it all runs in one process, which shows more"
            )
        job, spec = worker.job, self._specs[index]
        row = worker.row or Row(case=job.source.case, input=job.source.relative)
        message = f"its process died ({_ending(worker.process)}); look at this input, or if memory ran out, at --jobs"
        if error == TIMEOUT:
            message = f"took longer than --timeout {self._timeout:g} seconds"
        yield lost(worker.bound.journal(spec.out), row, error, message, dry_run=spec.dry_run)
        if row.frame is None:
            yield None
        else:
            self._again.append(job.without(row.case))


def _start(spec: TaskSpec) -> _Worker:
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, spec), daemon=True)
    with _undisturbed():
        process.start()
    there.close()
    return _Worker(process, here)


@contextmanager
def _undisturbed() -> Generator[None]:
    """Keep Ctrl-C from a process that is too young to ignore it; this one hears of it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ending(process: BaseProcess) -> str:
    code = process.exitcode
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
