"""One run of the command: its inputs and workers, what they were bound to, and the tables at the end."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from m2s_runtime import run_file
from m2s_runtime.anonymise import anonymised
from m2s_runtime.cine_record import recall
from m2s_runtime.console import Reporter
from m2s_runtime.errors import INTERRUPTED, TERMINATED, OutputError
from m2s_runtime.event_log import EventLog
from m2s_runtime.frames import FrameRequest
from m2s_runtime.inputs import Source, discover
from m2s_runtime.lock import Lock
from m2s_runtime.options import SPREAD_FORMATS, Options, Setup
from m2s_runtime.outcome import Outcome
from m2s_runtime.pools import choose_pool
from m2s_runtime.record import Record, Row
from m2s_runtime.shards import Shard
from m2s_runtime.table import TABLE
from m2s_runtime.task import TaskSpec, open_reconstructor
from m2s_runtime.text import clean
from m2s_runtime.versions import version

_ENDINGS: Final = {INTERRUPTED: "interrupted: ", TERMINATED: "terminated: "}


class Session:
    """Inputs, output folder and options of one command; a context manager: `open`, then `run`, then `finish`."""

    def __init__(self, inputs: Sequence[str], out: Path, options: Options, setup: Setup) -> None:
        """Find the inputs.

        Raises:
            NoInputs: there is none.
            UsageProblem: two would share a case id, or `options` or `setup` hold an impossible value.
            OutputError: the event log cannot be written.
        """
        FrameRequest.parse(options.frames)
        self._shard = Shard.parse(setup.shard)
        self._found = anonymised(discover(inputs, out), out) if options.anonymise else discover(inputs, out)
        self._inputs, self._command = ([], []) if options.anonymise else (list(inputs), sys.argv)
        self._out, self._options, self._setup = out, options, setup
        self._sources = [source for source in self._found.sources if self._shard.holds(source.case)]
        self._reporter = Reporter(len(self._sources), setup.verbosity)
        spec = TaskSpec(
            out, options, tuple(self._found.sources), setup.model, setup.engine, setup.device, setup.threads,
            setup.dry_run, open_reconstructor, setup.precision, setup.engine_dir, setup.batch_size,
        )  # fmt: skip
        self._pool = choose_pool(spec, setup.jobs, setup.timeout, len(self._sources), self._reporter.say, setup.cluster)
        self._lock = Lock(out, self._shard)
        self._log = EventLog(setup.log_json)
        self._unrecorded = [
            Row(case="", input=p.name, status="failed", error="no-input", message=p.message)
            for p in self._found.problems
        ]
        self._started = datetime.now(UTC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of workers, lock and log."""
        self._pool.close()
        self._lock.release()
        self._log.close()

    def open(self) -> None:
        """Bind bundle, engine and devices, say which, and take the output folder.

        Raises:
            BundleError, EngineError, UsageProblem: see `task.Task`.
            OutputError: the output folder cannot be written, or another run is under way in it.
        """
        self._bound = self._pool.open()
        self._journal = self._bound.journal(self._out)
        self._introduce()
        if self._setup.dry_run:
            self._journal.check()
            return
        self._journal.open()
        if not self._lock.acquire():
            self._reporter.note(f"--out {self._out} knows no locks: see to it that no other run writes there")
        run_file.withdraw(self._out, self._shard)

    def run(self) -> bool:
        """Do every case; True when any of them failed.

        Raises:
            Stop: what no other case would survive either, such as a full disk.
        """
        for problem in self._found.problems:
            self._reporter.say(f"{problem.name}: {problem.message}")
            self._reporter.unusable += 1
        sources = self._failed_before() if self._setup.retry_failed else self._sources
        with self._reporter:
            for outcome in self._pool.outcomes(self._unfinished(sources)):
                if outcome is None:
                    self._reporter.advance()
                else:
                    self._take(outcome)
        return bool(self._reporter.counts["failed"] or self._found.problems)

    def finish(self, exit_code: int) -> None:
        """Stop what is under way, sum up, and write `cases.csv`, `run.json` and, last, `report.html`.

        Raises:
            OutputError: the output folder cannot be written.
        """
        self._pool.close()
        self._log.event("end", exit_code=exit_code, cases=dict(self._reporter.counts))
        where = ""
        try:
            where = "" if self._setup.dry_run else self._tables(exit_code)
        finally:
            self._reporter.summary(_ENDINGS.get(exit_code, ""), where)

    def _introduce(self) -> None:
        bundle, engine, note = self._bound.bundle, self._bound.engine, self._reporter.note
        note(
            f"m2s-run {version()}: bundle {bundle['name']}, engine {engine['name']} on {engine['device']}, "
            f"{engine['threads']} thread(s), {self._bound.kernel} distance kernel, {len(self._sources)} file(s)"
        )
        note(f"engine {engine['name']}: {engine['description']}")
        if sampling := self._bound.sampling:
            note(f"sampling: {sampling['steps']} denoising step(s), temperature {sampling['temperature']:g}")
        if not self._shard.whole:
            note(
                f"shard {self._shard.number} of {self._shard.count}: {len(self._sources)} of "
                f"{len(self._found.sources)} file(s); the others are not done here"
            )
        if self._bound.kernel == "scipy":
            note("the compiled distance kernel is missing: distances come from SciPy, approximate")
        without = [name for name in self._options.formats if name not in SPREAD_FORMATS]
        if self._options.samples > 1 and without:
            note(f"{', '.join(without)}: without the spread, which {' and '.join(SPREAD_FORMATS)} hold")
        self._log.event("start", command=self._command, files=len(self._sources), bundle=bundle, engine=engine)

    def _unfinished(self, sources: Iterable[Source]) -> Iterator[Source]:
        """The sources that need a worker; those whose cases are all complete are told here and now."""
        told = self._options.overwrite
        for source in sources:
            records = [] if self._options.overwrite else self._complete(source)
            for record in records:
                self._take(Outcome(record.row, "complete", tuple(self._journal.paths(record))))
            if records:
                self._reporter.advance()
            else:
                if not told and self._journal.stale(source.case):
                    told = True
                    self._reporter.note(
                        f"{source.case}: done before, but by another engine or version, from another bundle or with "
                        "other options; it and others like it are done again"
                    )
                yield source

    def _complete(self, source: Source) -> list[Record]:
        record = self._journal.complete(source.case, source.path)
        return [record] if record else recall(self._journal, source, self._options.frames) or []

    def _failed_before(self) -> list[Source]:
        failed = {record.row.input for record in self._journal.records() if record.row.status == "failed"}
        chosen = [source for source in self._sources if source.relative in failed]
        self._reporter.note(f"{len(chosen)} file(s) failed before and are tried again")
        return chosen

    def _take(self, outcome: Outcome) -> None:
        self._reporter.outcome(outcome)
        self._log.outcome(outcome)
        if outcome.state in ("failed", "empty"):  # some of these have no completion record
            self._unrecorded.append(outcome.row)

    def _tables(self, exit_code: int) -> str:
        """Write them, those of all shards after the last; where to look for them."""
        document = self._document(exit_code)
        run_file.write(self._out, self._shard, document, self._unrecorded)
        if self._shard.whole:
            self._journal.merge(self._unrecorded)
        else:
            shards = run_file.finished_shards(self._out, self._shard.count)
            if shards is None:
                return f"; {TABLE} follows with the last shard"
            self._journal.merge(run_file.rows_of(shards))
            run_file.write(self._out, Shard(), run_file.joined(shards))
        if not self._options.report:
            return f"; see {self._out / TABLE}"
        return f"; see {self._out / TABLE} and {self._report().name}"

    def _report(self) -> Path:
        """Render the report; nothing else waits for it, and the rest is on disk by now."""
        from m2s_runtime.report.pages import write_report

        try:
            return write_report(self._out)
        except Exception as error:
            raise OutputError(
                f"the report could not be made ({clean(str(error)) or type(error).__name__}); meshes and {TABLE} are "
                f"complete; m2s-run --report-only --out {self._out} tries again"
            ) from error

    def _document(self, exit_code: int) -> dict[str, Any]:
        setup = self._setup
        return {
            **run_file.surroundings(),
            "command": self._command,
            "shard": self._shard.name,
            "started": self._started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "exit_code": exit_code,
            "inputs": self._inputs,
            "bundle": self._bound.bundle,
            "engine": self._bound.engine,
            "distance_kernel": self._bound.kernel,
            "sampling": self._bound.sampling,
            "options": asdict(self._options),
            "setup": {name: getattr(setup, name) for name in ("device", "jobs", "batch_size", "timeout", "cluster")},
            "cases": dict(sorted(self._reporter.counts.items())),
            "seconds": {stage: round(total, 3) for stage, total in self._reporter.seconds.items()},
        }
