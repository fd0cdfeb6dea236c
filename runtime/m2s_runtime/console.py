"""What people see while a batch runs: a bar on a terminal, a line a case elsewhere; results alone go to stdout."""

import os
import sys
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from m2s_runtime.text import clean

if TYPE_CHECKING:
    from m2s_runtime.outcome import Outcome


class Reporter:
    """Prints outcomes and counts them; use as a context manager.

    Attributes:
        counts: cases per state.
        unusable: inputs that lead to no case.
        decisions: cases per text of what was taken for the wall.
        flags: cases per flag; `flagged` is the number of cases that have any.
        seconds: time per stage, summed over the cases done.
    """

    def __init__(self, sources: int, verbosity: int) -> None:
        """Report on a number of sources; `verbosity` -1 shows failures only, 1 adds stage times and traces."""
        self.counts: Counter[str] = Counter()
        self.unusable = 0
        self.decisions: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.flagged = 0
        self.seconds: Counter[str] = Counter()
        self._verbosity = verbosity
        self._sources = sources
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        """Start the bar, on a terminal."""
        if sys.stderr and sys.stderr.isatty() and self._verbosity >= 0:
            self._start_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar down."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def say(self, line: str) -> None:
        """A line for people, above the bar."""
        if self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            tell(line)

    def note(self, line: str) -> None:
        """A line that `-q` silences."""
        if self._verbosity >= 0:
            self.say(line)

    def outcome(self, outcome: "Outcome") -> None:
        """Show one case and print its mesh, if it has one, to stdout."""
        row = outcome.row
        self.counts[outcome.state] += 1
        self.seconds.update(outcome.seconds)
        self.flags.update(row.flags.split() if row.flags else ())
        self.flagged += bool(row.flags)
        if row.labels and outcome.state != "empty":
            self.decisions[row.labels] += 1
        if outcome.state == "failed":
            self.say(f"{row.case}: {row.message}")
        elif self._verbosity > 0 or (self._verbosity == 0 and self._progress is None):
            self.say(f"{row.case}: {_summary(outcome)}")
        if row.message and outcome.state in ("done", "planned"):
            self.note(f"{row.case}: warning: {row.message}")
        if self._verbosity > 0:
            self._details(outcome)
        if outcome.paths:
            _write(sys.stdout, str(outcome.paths[0]))

    def summary(self, ending: str, where: str) -> None:
        """The last lines: decisions, flags, and how many cases came to what, between `ending` and `where`."""
        for text, count in self.decisions.most_common(5):
            self.note(f"labels: {text} ({count} case(s))")
        if self.flagged:
            flags = ", ".join(f"{flag} {count}" for flag, count in self.flags.most_common())
            self.note(f"{self.flagged} case(s) flagged: {flags}")
        counts = self.counts + Counter(failed=self.unusable)
        done = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        self.note(f"{ending}{done or 'nothing done'}{where}")

    def advance(self) -> None:
        """One source is finished."""
        if self._progress is not None:
            self._progress.advance(self._task)

    def _details(self, outcome: "Outcome") -> None:
        if outcome.row.labels:
            self.say(f"  labels: {outcome.row.labels}")
        if outcome.seconds:
            self.say("  " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in outcome.seconds.items()))
        if outcome.trace:
            self.say("\n".join(clean(line) for line in outcome.trace.splitlines()))

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("reconstructing"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            # Redirected, a piped stdout would end up on the terminal's stderr.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._progress.add_task("", total=self._sources)
        self._progress.start()


def _summary(outcome: "Outcome") -> str:
    row = outcome.row
    if outcome.state == "complete":
        return "complete since an earlier run"
    if outcome.state == "empty":
        return "no wall in this frame"
    stack = f"{row.slices} slices, {row.step_mm:g} mm apart" if row.slices and row.step_mm else ""
    if outcome.state == "planned":
        return f"would run ({stack})"
    shape = "closed" if row.closed else "NOT closed"
    text = f"{row.volume_ml:.1f} ml, {shape}, genus {row.genus}, {stack}, {row.seconds:.1f} s"
    return f"{text} [{row.flags}]" if row.flags else text


def tell(line: str) -> None:
    """A line on stderr, whether anybody reads it or not."""
    _write(sys.stderr, line)


def _write(stream: TextIO | None, line: str) -> None:
    if stream is None:  # closed by the caller
        return
    try:
        encoding = stream.encoding or "utf-8"
        stream.write(f"{line}\n".encode(encoding, errors="backslashreplace").decode(encoding))
        stream.flush()
    except OSError:
        # The reader (`| head`) has left, or its disk is full; the reconstruction goes on without it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
