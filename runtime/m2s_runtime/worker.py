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
from m2s_runtime.journal import Row
from m2s_runtime.outcome import Outcome
from m2s_runtime.quiet import quiet_libraries
from m2s_runtime.task import Bound, Task, TaskSpec


@dataclass(frozen=True)
class Job:
    """A source, and those of its cases that need no more work."""

    source: Source
    settled: frozenset[str] = frozenset()

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


Message = Bound | Row | Outcome | Note | Ended | None
"""What a worker sends: once what it was bound to; for each case its row before it is begun, then its outcome; None when
a source is finished."""


def serve(pipe: Connection, spec: TaskSpec) -> None:
    """Do the jobs that come through the pipe until it closes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever sends them to all processes of a run means the parent
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # stdout is for results
    try:
        with quiet_libraries(lambda text: pipe.send(Note(text))):
            _work(pipe, spec)
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - the parent raises it
        pipe.send(Ended(type(error).__name__, str(error), traceback.format_exc()))


def _work(pipe: Connection, spec: TaskSpec) -> None:
    task = Task(spec)
    pipe.send(task.bound)
    while True:
        job: Job = pipe.recv()
        for outcome in task.outcomes(job.source, job.settled, pipe.send):
            pipe.send(outcome)
        pipe.send(None)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
