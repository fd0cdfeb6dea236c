"""Where the cases of a run are done: in supervised processes, one for each device, or here and now.

A process that dies or hangs takes one case with it. It is replaced, and what else it had under way is done again.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import connection
from typing import Final, Literal, Protocol

from m2s_runtime.errors import EngineError
from m2s_runtime.inputs import Source
from m2s_runtime.outcome import Outcome
from m2s_runtime.record import Row
from m2s_runtime.supervised import FAREWELL_SECONDS, FOREVER, Flight, Worker, start
from m2s_runtime.task import CRASHED, TIMEOUT, Bound, Task, TaskSpec, lost
from m2s_runtime.worker import Ended, Job, Message, Note, Seated, Told

_STARTS: Final = 3
"""So many processes that die one after the other while they load end a run in which one could load."""

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


class Workers:
    """Supervised processes, one for each spec; each has only as many sources as it can do at a time."""

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        timeout: float,
        say: Callable[[str], None],
        *,
        only_first_on_gpu: bool = False,
    ) -> None:
        """Prepare.

        Args:
            specs: of the processes.
            timeout: seconds a case, 0 for none.
            say: hears what libraries have to say.
            only_first_on_gpu: whether the first process does without the others if it finds that it has a GPU.
        """
        self._specs, self._say = list(specs), say
        self._timeout = timeout if 0 < timeout <= _LONGEST_SECONDS else FOREVER
        self._only_first_on_gpu = only_first_on_gpu
        self._workers: list[Worker | None] = [None] * len(specs)
        self._again: deque[Job] = deque()
        self._stillborn = 0
        self._bound: Bound | None = None

    def open(self) -> Bound:
        """See `Pool.open`."""
        if self._only_first_on_gpu and self._specs[0].device == "auto":
            self._workers[0] = start(self._specs[0])
            if self._greet(0, self._workers[0]).engine["device"] != "cpu":
                self._specs, self._workers = self._specs[:1], self._workers[:1]
        self._workers = [worker or start(spec) for worker, spec in zip(self._workers, self._specs, strict=True)]
        bound = [self._greet(index, worker) for index, worker in enumerate(self._workers) if worker]
        return bound[0]

    def _greet(self, index: int, worker: Worker) -> Bound:
        while worker.bound is None:
            for _ in self._hear(index, worker):  # nothing was asked of it yet
                pass
        return worker.bound

    def outcomes(self, sources: Iterable[Source]) -> Iterator[Outcome | None]:
        """See `Pool.outcomes`."""
        fresh = map(Job, sources)
        while True:
            while sum(self._occupy(index, fresh) for index in range(len(self._workers))):
                pass  # one job each at a time, so that few are shared out evenly
            busy = [(i, worker) for i, worker in enumerate(self._workers) if worker and worker.flights]
            if not busy:
                return
            first = min(worker.deadline for _, worker in busy)
            patience = None if first == FOREVER else max(first - time.monotonic(), 0.0)
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
            if worker.flights or not worker.bound:
                worker.process.kill()
        for worker in workers:
            worker.stop(FAREWELL_SECONDS)
            if worker.bound:
                self._sweep(worker, worker.bound)

    def _sweep(self, worker: Worker, bound: Bound) -> None:
        """Clear away what a process left of the cases that it had under way."""
        journal = bound.journal(self._specs[0].out)
        for flight in worker.flights.values():
            for case in flight.rows or [flight.job.source.case]:
                journal.sweep(case)

    def _occupy(self, index: int, fresh: Iterator[Job]) -> bool:
        """Give a worker that has room another job, if there is one; a worker that died idle is replaced."""
        worker = self._workers[index]
        if worker and not worker.takes(None):
            return False
        if self._again and (worker is None or worker.takes(self._again[0])):
            job = self._again.popleft()
        else:
            job = next(fresh, None)
        if job is None:
            return False
        if worker is None or not (worker.flights or worker.process.is_alive()):
            worker = self._workers[index] = start(self._specs[index])
        waits = bool(worker.flights) or not worker.bound
        worker.flights[job.source.case] = Flight(job, FOREVER if waits else time.monotonic() + self._timeout)
        with contextlib.suppress(OSError):  # it has just died: hearing it will tell
            worker.pipe.send(job)
        return True

    def _hear(self, index: int, worker: Worker) -> Iterator[Outcome | None]:
        try:
            message: Message = worker.pipe.recv()
        except (EOFError, OSError):
            yield from self._lose(index, worker, CRASHED)
            return
        if isinstance(message, Ended):
            raise message.error()
        if isinstance(message, Bound):
            self._agree(worker, message)
            for flight in worker.flights.values():
                flight.deadline = time.monotonic() + self._timeout
        elif isinstance(message, Note):
            self._say(message.text)
        else:
            yield from self._note(worker, message)

    def _note(self, worker: Worker, message: Told) -> Iterator[Outcome | None]:
        """Keep account of what a worker tells of a source."""
        flight, what = worker.flights[message.source], message.what
        flight.deadline = time.monotonic() + self._timeout
        if isinstance(what, Seated):
            return
        if isinstance(what, Row):
            flight.rows[what.case] = what
            return
        if what is None:
            del worker.flights[message.source]
        else:
            flight.rows.pop(what.row.case, None)
            flight.job = flight.job.without(what.row.case)
        yield what

    def _agree(self, worker: Worker, bound: Bound) -> None:
        """Take note of what a process was bound to; all must make the same of a case, those that replace others too."""
        worker.bound, self._stillborn = bound, 0
        self._bound = self._bound or bound
        if bound.fingerprint != self._bound.fingerprint:
            raise EngineError(
                f"the processes do not agree: one is bound to {self._bound.engine['description']} with the "
                f"{self._bound.kernel} distance kernel, another to {bound.engine['description']} with the "
                f"{bound.kernel} one; name --engine and use one kind of --device"
            )

    def _lose(self, index: int, worker: Worker, error: Literal["crashed", "timeout"]) -> Iterator[Outcome | None]:
        """Record the case that a worker was lost with, and see to what else it had under way.

        Of several cases nobody knows which one it was: each is done again alone, after a time-out only those that were
        late. Nor does one that was starting in place of another tell of any.
        """
        now = time.monotonic()
        self._workers[index] = None
        worker.stop(0.0 if error == TIMEOUT else FAREWELL_SECONDS)  # to learn how it ended
        if worker.bound is None and worker.flights and self._stillborn + 1 < _STARTS:
            self._stillborn += 1
            self._again.extend(flight.job for flight in worker.flights.values())
            return
        if not worker.flights or worker.bound is None:
            raise EngineError(
                f"the process for --device {self._specs[index].device} died while it loaded bundle and engine "
                f"({worker.ending}); with --jobs 0 it all runs in one process, which shows more"
            )
        row = worker.lone_case()
        if row is None:
            self._sweep(worker, worker.bound)
            for flight in worker.flights.values():
                suspect = error == CRASHED or flight.deadline < now
                self._again.append(replace(flight.job, alone=flight.job.alone or suspect))
            return
        job = next(iter(worker.flights.values())).job
        message = f"its process died ({worker.ending}); look at this input, or if memory ran out, at --jobs"
        if error == TIMEOUT:
            message = f"took longer than --timeout {self._timeout:g} seconds"
        spec = self._specs[index]
        yield lost(worker.bound.journal(spec.out), row, error, message, dry_run=spec.dry_run)
        if row.frame is None:
            yield None
        else:
            self._again.append(job.without(row.case))
