"""One run of the command: the batch, what it was bound to, and the record of it (`run.json`)."""

import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from m2s_runtime.batch import Batch, Reconstructs
from m2s_runtime.console import Reporter
from m2s_runtime.frames import FrameRequest
from m2s_runtime.inputs import discover
from m2s_runtime.journal import SCHEMA, TABLE, Journal, Row
from m2s_runtime.labels import check_scheme
from m2s_runtime.options import SPREAD_FORMATS, Options

if TYPE_CHECKING:
    from m2s_runtime.bundle import Bundle
    from m2s_runtime.engines import Engine

_PACKAGES: Final = ("numpy", "scipy", "nibabel", "scikit-image", "trimesh", "onnxruntime", "onnxruntime-gpu")


def version() -> str:
    """Version of the installed distribution."""
    return _installed("mask2surface") or "unknown"


def open_reconstructor(
    model: str | None, engine: str, device: str, threads: int, options: Options
) -> tuple["Bundle", "Engine", Reconstructs]:
    """Load the bundle and bind an engine.

    Raises:
        BundleError: the bundle is missing or altered.
        EngineError: the engine or device cannot be had.
    """
    from m2s_runtime.bundle import load_bundle
    from m2s_runtime.engines import open_engine
    from m2s_runtime.pipeline import Reconstructor

    bundle = load_bundle(model)
    bound = open_engine(bundle, engine=engine, device=device, threads=threads)
    reconstructor = Reconstructor(
        bundle, bound, steps=options.steps, seed=options.seed, threads=bound.threads,
        samples=options.samples, refine=options.refine,
    )  # fmt: skip
    return bundle, bound, reconstructor


class Session:
    """Inputs, output folder and options of one command; `open`, then `run`, then `close`."""

    def __init__(self, inputs: Sequence[str], out: Path, options: Options, *, verbosity: int = 0) -> None:
        """Find the inputs.

        Raises:
            NoInputs: there is none.
            UsageProblem: two would share a case id, or `options` holds an impossible value.
        """
        check_scheme(options.labels)
        FrameRequest.parse(options.frames)
        self._found = discover(inputs, out)
        self._inputs, self._out, self._options = list(inputs), out, options
        self._reporter = Reporter(len(self._found.sources), verbosity)
        self._started = datetime.now(UTC)

    def open(self, model: str | None, engine: str, device: str, threads: int) -> None:
        """Bind bundle, engine and device, and say which.

        Raises:
            BundleError, EngineError: see `open_reconstructor`.
        """
        self._bundle, self._engine, reconstructor = open_reconstructor(model, engine, device, threads, self._options)
        from m2s_runtime import mesh_distance  # not needed to tell the version

        self._kernel = mesh_distance.KERNEL
        fingerprint = self._options.fingerprint(**_bound_to(self._engine), kernel=self._kernel, version=version())
        self._journal = Journal(self._out, bundle=self._bundle.sha256, options=fingerprint)
        self._batch = Batch(self._found.sources, reconstructor, self._journal, self._options)
        self._reporter.note(
            f"m2s-run {version()}: bundle {self._bundle.name}, engine {self._engine.name} on {self._engine.device}, "
            f"{self._engine.threads} thread(s), {self._kernel} distance kernel, {len(self._found.sources)} file(s)"
        )
        if self._kernel == "scipy":
            self._reporter.note("the compiled distance kernel is missing: distances come from SciPy, approximate")
        without = [name for name in self._options.formats if name not in SPREAD_FORMATS]
        if self._options.samples > 1 and without:
            self._reporter.note(f"{', '.join(without)}: without the spread, which {' and '.join(SPREAD_FORMATS)} hold")

    def run(self, *, dry_run: bool = False) -> bool:
        """Do every case; True when any of them failed.

        Raises:
            OutputError: the output folder cannot be written.
        """
        if dry_run:
            self._journal.check()
        else:
            self._journal.open()
        for problem in self._found.problems:
            self._reporter.say(f"{problem.name}: {problem.message}")
        with self._reporter:
            for source in self._found.sources:
                for outcome in self._batch.run(source, dry_run=dry_run):
                    self._reporter.outcome(outcome)
                self._reporter.advance()
        self._summarise(dry_run=dry_run)
        return bool(self._reporter.counts["failed"] or self._found.problems)

    def close(self, exit_code: int) -> None:
        """Write `cases.csv` and `run.json`.

        Raises:
            OutputError: the output folder cannot be written.
        """
        problems = [
            Row(case="", input=p.name, status="failed", error="no-input", message=p.message)
            for p in self._found.problems
        ]
        self._journal.merge([*problems, *self._batch.rows], self._document(exit_code))

    def _summarise(self, *, dry_run: bool) -> None:
        for text, count in self._reporter.decisions.most_common(5):
            self._reporter.note(f"labels: {text} ({count} case(s))")
        if self._reporter.flagged:
            flags = ", ".join(f"{flag} {count}" for flag, count in self._reporter.flags.most_common())
            self._reporter.note(f"{self._reporter.flagged} case(s) flagged: {flags}")
        done = ", ".join(f"{count} {state}" for state, count in sorted(self._reporter.counts.items()))
        self._reporter.note(f"{done or 'nothing done'}" + ("" if dry_run else f"; see {self._out / TABLE}"))

    def _document(self, exit_code: int) -> dict[str, Any]:
        bundle, engine, options = self._bundle, self._engine, self._options
        return {
            "schema": SCHEMA,
            "version": version(),
            "command": sys.argv,
            "started": self._started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "exit_code": exit_code,
            "inputs": self._inputs,
            "bundle": {"name": bundle.name, "path": str(bundle.path), "sha256": bundle.sha256},
            "engine": {
                "name": engine.name,
                "device": engine.device,
                "threads": engine.threads,
                "description": engine.description,
            },
            "distance_kernel": self._kernel,
            "options": vars(options),
            "cases": dict(sorted(self._reporter.counts.items())),
            "seconds": {stage: round(total, 3) for stage, total in self._reporter.seconds.items()},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: found for name in _PACKAGES if (found := _installed(name))},
        }


def _bound_to(engine: "Engine") -> dict[str, str | int]:
    """What of an engine can change the bytes of a mesh; which of several GPUs it is does not count."""
    return {
        "engine": engine.name,
        "engine_version": engine.description.partition(" on ")[0],
        "device": engine.device.split(":")[0],
        "threads": engine.threads,
    }


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
