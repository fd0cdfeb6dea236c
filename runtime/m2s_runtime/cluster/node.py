"""What runs on a node of a cluster: one supervised worker, and a look at whether the node sees the same files."""

import platform
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from m2s_runtime.errors import NoInputs, OutputError, Stop
from m2s_runtime.inputs import Source
from m2s_runtime.outcome import Outcome
from m2s_runtime.task import Bound, TaskSpec
from m2s_runtime.workers import Workers


@dataclass(frozen=True)
class Report:
    """A source that a node is done with: its outcomes, and what libraries had to say."""

    outcomes: list[Outcome]
    notes: list[str]


class Node:
    """A worker process for one device of a node. It is the one of a local run: what a case does to it ends there."""

    def __init__(self, spec: TaskSpec, timeout: float, probe: Path | None) -> None:
        """Prepare.

        Args:
            spec: what the worker does, with paths that do not depend on the current folder.
            timeout: seconds a case may take, 0 for any number.
            probe: a file in the output folder, made for this run; None where nothing is to be written.
        """
        self._out, self._probe = spec.out, probe
        self._notes: list[str] = []
        self._workers = Workers([spec], timeout, self._notes.append)
        # A spawned process imports its parent's main module again: here that of the cluster's own workers.
        vars(sys.modules["__main__"]).pop("__file__", None)

    def open(self) -> tuple[str, Bound]:
        """Name of the node, and what the worker was bound to.

        Raises:
            BundleError, EngineError, UsageProblem: as `task.Task` does.
        """
        with _named():
            return platform.node(), self._workers.open()

    def run(self, source: Source) -> Report:
        """Do all cases of a source.

        Raises:
            OutputError: the node does not see the output folder, or what `task.Task` raises.
            NoInputs: it does not see the folder of the source.
        """
        with _named():
            self._look(source)
            outcomes = [outcome for outcome in self._workers.outcomes([source]) if outcome]
        notes = self._notes.copy()
        self._notes.clear()
        return Report(outcomes, notes)

    def _look(self, source: Source) -> None:
        """Once, compare what this node sees with what the machine of the command saw."""
        if self._probe and not self._probe.is_file():
            raise OutputError(f"--out {self._out}: not the folder of the command; choose one that all nodes share")
        if self._probe and not source.path.parent.is_dir():
            raise NoInputs(f"{source.path.parent}: not there; all nodes have to see the inputs by the same path")
        self._probe = None


@contextmanager
def _named() -> Generator[None]:
    """Errors tell on which node they arose."""
    try:
        yield
    except Stop as error:
        raise type(error)(f"{error} (node {platform.node()})") from None
