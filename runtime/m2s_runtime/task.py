"""What one process does for each source, the same whether a local worker, a Ray actor or a SLURM job calls it."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from m2s_runtime.errors import Occupied
from m2s_runtime.inputs import Source
from m2s_runtime.journal import Journal
from m2s_runtime.options import Options
from m2s_runtime.outcome import Outcome
from m2s_runtime.record import Row
from m2s_runtime.seats import Seats
from m2s_runtime.versions import version

if TYPE_CHECKING:
    from m2s_runtime.batch import Reconstructs
    from m2s_runtime.bundle import Bundle
    from m2s_runtime.engines import Engine

CRASHED: Final = "crashed"
"""Error code of a case whose process died."""

TIMEOUT: Final = "timeout"
"""Error code of a case that took too long."""


@dataclass(frozen=True)
class TaskSpec:
    """All that a process needs to do its part of a run; picklable.

    Attributes:
        out: output folder.
        options: what decides a case's files.
        sources: every source of the run, those of other shards too: their names are taken.
        model: bundle folder or name; None for the default bundle.
        engine: as in `engines.open_engine`, like the next two.
        device: one device.
        threads: cores for this process; 0 means all.
        precision: as in `engines.open_engine`, like the next.
        engine_dir: folder of built TensorRT engines.
        batch_size: cases that a network computes at once; None for what suits the device.
        cores: how many frames of a cine the process may do side by side on the CPU.
        dry_run: only say what would happen.
        opener: loads bundle, engine and reconstructor. A function of a module, or something else that can be pickled.
    """

    out: Path
    options: Options
    sources: tuple[Source, ...]
    model: str | None = None
    engine: str = "auto"
    device: str = "auto"
    threads: int = 0
    dry_run: bool = False
    opener: "Opener | None" = None
    precision: str = "auto"
    engine_dir: Path | None = None
    batch_size: int | None = None
    cores: int = 1


Opener = Callable[[TaskSpec], "tuple[Bundle, Engine, Reconstructs]"]
"""See `TaskSpec.opener`."""


@dataclass(frozen=True)
class Bound:
    """What a task was bound to, for the log, `run.json` and the completion records; picklable.

    Attributes:
        bundle: name, path and sha256 of the bundle.
        engine: name, device, threads and description of the engine.
        kernel: where the C-SDG is made: `device`, or on the host, see `mesh_distance.bound_kernel`.
        fingerprint: sha256 of all but the bundle and the input that can change a case's files.
        cases: how many cases the process can have under way at a time.
        sampling: denoising steps and temperature, see `sampling.Sampling`.
    """

    bundle: dict[str, str]
    engine: dict[str, str | int]
    kernel: str
    fingerprint: str
    cases: int = 1
    sampling: dict[str, int | float] = field(default_factory=dict[str, int | float])

    def journal(self, out: Path) -> Journal:
        """The journal of an output folder, for what was bound here."""
        return Journal(out, bundle=self.bundle["sha256"], options=self.fingerprint)


class Task:
    """Opens bundle, engine and journal once, then does one source after the other."""

    def __init__(self, spec: TaskSpec) -> None:
        """Load and bind; writes nothing.

        Raises:
            BundleError: the bundle is missing or altered.
            EngineError: the engine or device cannot be had.
            UsageProblem: an option that cannot mean anything.
        """
        from m2s_runtime import device_csdg
        from m2s_runtime.batch import Batch  # heavy, like all that follows: a process that only supervises needs none
        from m2s_runtime.engines.base import Draws
        from m2s_runtime.engines.batching import Batched
        from m2s_runtime.labels import check_scheme
        from m2s_runtime.mesh_distance import bound_kernel
        from m2s_runtime.pipeline import Pipeline

        check_scheme(spec.options.labels)
        bundle, engine, reconstructor = (spec.opener or open_reconstructor)(spec)
        self._seats = engine.seats if isinstance(engine, Batched) else Seats(spec.batch_size or 1)
        kernel = device_csdg.KERNEL if isinstance(engine, Draws) else bound_kernel(exact=spec.options.exact)
        sampling = asdict(reconstructor.sampling) if isinstance(reconstructor, Pipeline) else {}
        fingerprint = spec.options.fingerprint(**_bound_to(engine), **sampling, kernel=kernel, version=version())
        self.bound = Bound(
            {"name": bundle.name, "path": str(bundle.path), "sha256": bundle.sha256},
            {name: getattr(engine, name) for name in ("name", "device", "threads", "description")},
            kernel,
            fingerprint,
            self._seats.count,
            sampling,
        )
        self._batch = Batch(spec.sources, reconstructor, self.bound.journal(spec.out), spec.options, self._seats)
        self._dry_run = spec.dry_run

    def run(self, source: Source, settled: Collection[str] = ()) -> list[Outcome]:
        """Do all cases of a source but those `settled`, write their files and records, and tell what became of them.

        Raises:
            Stop: what no other case would survive either (engine lost, disk full).
        """
        return list(self.outcomes(source, settled))

    def outcomes(
        self,
        source: Source,
        settled: Collection[str] = (),
        started: Callable[[Row], None] = lambda _: None,
        *,
        seated: Callable[[], None] = lambda: None,
        alone: bool = False,
    ) -> Iterator[Outcome]:
        """`run`, one case at a time; `started` hears the row of each before it is begun, as far as it is known.

        As many threads as `bound.cases` may do so at a time; one that has to wait for others first calls `seated` when
        it need wait no more. With `alone` a cine has a single frame under way, where it may have several.
        """
        with self._seats.seat():
            seated()
            yield from self._batch.run(source, settled=settled, started=started, dry_run=self._dry_run, alone=alone)


def open_reconstructor(spec: TaskSpec) -> tuple["Bundle", "Engine", "Reconstructs"]:
    """Load the bundle and bind an engine.

    Raises:
        BundleError: the bundle is missing or altered.
        EngineError: the engine or device cannot be had.
    """
    from m2s_runtime.bundle import load_bundle
    from m2s_runtime.engines import open_engine
    from m2s_runtime.engines.batching import batched, usual_rows
    from m2s_runtime.pipeline import Pipeline

    options, bundle = spec.options, load_bundle(spec.model)
    bound = open_engine(
        bundle, spec.engine, spec.device, spec.threads, precision=spec.precision, engine_dir=spec.engine_dir
    )
    rows = spec.batch_size or max(usual_rows(bound, bundle), spec.cores if bound.device == "cpu" else 1)
    if rows > 1:
        bound = batched(bound, rows)
    reconstructor = Pipeline(
        bundle, bound, steps=options.steps, seed=options.seed, threads=bound.threads if rows == 1 else 1,
        samples=options.samples, refine=options.refine, quality=options.quality,
        exact=options.exact, base_limit=options.base_limit,
    )  # fmt: skip
    return bundle, bound, reconstructor


def lost(
    journal: Journal, row: Row, error: Literal["crashed", "timeout"], message: str, *, dry_run: bool = False
) -> Outcome:
    """Put on record a case whose process did not live to do so, and tell of it.

    Args:
        journal: from `Bound.journal`.
        row: what the task's `started` was last told; `Row(source.case, source.relative)` before its first case.
        error: `CRASHED` or `TIMEOUT`.
        message: what happened and what may help.
        dry_run: write nothing.

    Raises:
        OutputError: the record cannot be written.
    """
    row = replace(row, status="failed", error=error, message=f"{row.input}: {message}")
    if not dry_run:
        with contextlib.suppress(Occupied):
            journal.finish(row, {}, None)
    return Outcome(row, "failed")


def _bound_to(engine: "Engine") -> dict[str, str | int]:
    """What of an engine can change the bytes of a mesh; which of several GPUs it is does not count."""
    from m2s_runtime.engines.batching import Batched

    rows = engine.rows if isinstance(engine, Batched) else 1
    return ({"batch": rows} if rows > 1 else {}) | {
        "engine": engine.name,
        "engine_version": engine.description.partition(" on ")[0],
        "device": engine.device.split(":")[0],
        "threads": engine.threads,
    }
