"""What a worker process does: take jobs from its pipe, tell what becomes of them, end with its parent."""

import contextlib
import os
import signal
import threading
import traceback
from dataclasses import dataclass, replace
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection

from m2s_runtime import errors
from m2s_runtime.inputs import Source
from m2s_runtime.outcome import Outcome
from m2s_runtime.quiet import quiet_libraries
from m2s_runtime.record import Row
from m2s_runtime.task import Bound, Task, TaskSpec


@dataclass(frozen=True)
class Job:
    """A source, and those of its cases that need no more work."""

    source: Source
    settled: frozenset[str] = frozenset()
    alone: bool = False
    """Whether its cases are done one by one with no others beside them: one of them may have cost a process."""

    def without(self, case: str) -> "Job":
        """The same with one more case settled."""
        return replace(self, settled=self.settled | {case})


@dataclass(frozen=True)
class Note:
    """What a library had to say."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The error that ended a worker; errors themselves do not all survive a pipe."""

    kind: str
    text: str
    trace: str

    def error(self) -> Exception:
        """The error again, or for a bug something that holds its trace."""
        kind = getattr(errors, self.kind, None)
        if isinstance(kind, type) and issubclass(kind, errors.Stop):
            return kind(self.text)
        return RuntimeError(f"in a worker process:\n{self.trace}")


@dataclass(frozen=True)
class Seated:
    """No other source has to go on before this one can."""


@dataclass(frozen=True)
class Told:
    """Of a source, by its case id: the row of a case that is begun, an outcome, or None when the source is finished."""

    source: str
    what: Seated | Row | Outcome | None


Message = Bound | Told | Note | Ended
"""What a worker sends: once what it was bound to, then what it has to tell of its sources."""


def serve(pipe: Connection, spec: TaskSpec) -> None:
    """Do the jobs that come through the pipe until it closes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever sends them to all processes of a run means the parent
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # stdout is for results
    tell = _Teller(pipe)
    try:
        with quiet_libraries(lambda text: tell(Note(text))):
            _work(pipe, spec, tell)
    except EOFError:
        os._exit(0)  # all is done: taking everything down in order would keep the parent waiting
    except Exception as error:  # noqa: BLE001 - the parent raises it
        tell(_ended(error))


class _Teller:
    """Sends messages from any thread, whole; where nobody listens any more, no message matters."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()

    def __call__(self, message: Message) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._pipe.send(message)


def _work(pipe: Connection, spec: TaskSpec, tell: _Teller) -> None:
    """Do each job here, or where several cases may be under way, in a thread of its own; the parent sends no more."""
    task = Task(spec)
    tell(task.bound)
    while True:
        job: Job = pipe.recv()
        if task.bound.cases == 1:
            _do(task, job, tell)
        else:
            threading.Thread(target=_do_aside, args=(task, job, tell), daemon=True).start()


def _do(task: Task, job: Job, tell: _Teller) -> None:
    def told(what: Seated | Row | Outcome | None) -> None:
        tell(Told(job.source.case, what))

    for outcome in task.outcomes(job.source, job.settled, told, seated=lambda: told(Seated()), alone=job.alone):
        told(outcome)
    told(None)


def _do_aside(task: Task, job: Job, tell: _Teller) -> None:
    try:
        _do(task, job, tell)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        tell(_ended(error))


def _ended(error: Exception) -> Ended:
    return Ended(type(error).__name__, str(error), "".join(traceback.format_exception(error)))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
