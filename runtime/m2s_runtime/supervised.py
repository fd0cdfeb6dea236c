"""A worker process as its parent sees it: what it is about, and how it starts and ends."""

import contextlib
import signal
from collections.abc import Generator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final

from m2s_runtime.record import Row
from m2s_runtime.task import Bound, TaskSpec
from m2s_runtime.worker import Job, serve

FOREVER: Final = float("inf")
FAREWELL_SECONDS: Final = 5.0
"""How long a process may take to end by itself."""


@dataclass
class Flight:
    """A source that a worker is about.

    Attributes:
        job: the source, and its cases that need no more work.
        rows: of its cases that are under way, by case id.
        deadline: when it has to have been heard of; it has none while it waits for others.
    """

    job: Job
    deadline: float = FOREVER
    rows: dict[str, Row] = field(default_factory=dict[str, Row])


@dataclass
class Worker:
    """A process and what it is about: a flight for each source, by case id."""

    process: BaseProcess
    pipe: Connection
    bound: Bound | None = None
    flights: dict[str, Flight] = field(default_factory=dict[str, Flight])

    @property
    def deadline(self) -> float:
        """The next one."""
        return min((flight.deadline for flight in self.flights.values()), default=FOREVER)

    def takes(self, job: Job | None) -> bool:
        """Whether it has room for a job; None stands for one that is like most."""
        if any(flight.job.alone for flight in self.flights.values()):
            return False
        alone = job is not None and job.alone
        return len(self.flights) < (1 if alone or self.bound is None else self.bound.cases)

    def lone_case(self) -> Row | None:
        """The case that a loss can only be due to: the one that is under way, if no other is."""
        flights = list(self.flights.values())
        if len(flights) != 1 or len(flights[0].rows) > 1:
            return None
        source = flights[0].job.source
        return next(iter(flights[0].rows.values()), Row(case=source.case, input=source.relative))

    def stop(self, patience: float) -> None:
        """End the process, after so many seconds by force."""
        self.pipe.close()
        if patience:
            self.process.join(patience)
        self.process.kill()
        self.process.join(FAREWELL_SECONDS)  # no longer: a process may wait for a dead disk

    @property
    def ending(self) -> str:
        """How the process ended."""
        code = self.process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def start(spec: TaskSpec) -> Worker:
    """Start a process; it tells later what it was bound to."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, spec), daemon=True)
    with _undisturbed():
        process.start()
    there.close()
    return Worker(process, here)


@contextlib.contextmanager
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
