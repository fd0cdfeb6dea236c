"""What is done with a source: read, choose frames, reconstruct, record. A bad case ends itself, never the batch."""

import contextlib
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from m2s_runtime import atomic
from m2s_runtime.anonymise import without_names
from m2s_runtime.cine import Shifts
from m2s_runtime.cine_record import remember, series_path
from m2s_runtime.errors import CaseError, Occupied, Stop, UnreadableVolume
from m2s_runtime.frames import FrameRequest, frame_name
from m2s_runtime.inputs import Source
from m2s_runtime.journal import Journal
from m2s_runtime.measurements import Measurements, measure
from m2s_runtime.nifti_files import digest_of
from m2s_runtime.opened import Opened, open_source
from m2s_runtime.options import Options
from m2s_runtime.outcome import Outcome
from m2s_runtime.outputs import case_files
from m2s_runtime.placement import Canonical
from m2s_runtime.pvd import series
from m2s_runtime.record import Record, Row
from m2s_runtime.seats import Seats
from m2s_runtime.slices import wall_slices
from m2s_runtime.stacks import Stacks
from m2s_runtime.text import clean, without_folders

if TYPE_CHECKING:
    from m2s_runtime.pipeline import Reconstruction

BUG: Final = "bug"
"""Error code of a failure that nobody foresaw."""


class Reconstructs(Protocol):
    """What the batch needs of `m2s_runtime.pipeline.Pipeline`."""

    def estimate(self, canonical: Canonical, noise_key: str) -> Shifts:
        """Shifts (12, 2) mm of a stack by itself."""
        ...

    def reconstruct(self, canonical: Canonical, noise_key: str, shared: Shifts | None = None) -> "Reconstruction":
        """Turn a canonical stack into a surface, with the shifts that its cine shares or with its own."""
        ...


class Batch:
    """Runs sources with one reconstructor."""

    def __init__(
        self,
        sources: Sequence[Source],
        reconstructor: Reconstructs,
        journal: Journal,
        options: Options,
        seats: Seats | None = None,
    ) -> None:
        """Prepare; nothing is read or written yet. A bad `options.frames` raises `UsageProblem`.

        With more than one of `seats`, `run` may be called from several threads.
        """
        self._reconstructor = reconstructor
        self._journal = journal
        self._options = options
        self._seats = seats or Seats(1)
        self._frames = FrameRequest.parse(options.frames)
        self._owner = {source.case.casefold(): source for source in sources}

    def run(
        self,
        source: Source,
        *,
        settled: Collection[str] = (),
        started: Callable[[Row], None] = lambda _: None,
        dry_run: bool = False,
        alone: bool = False,
    ) -> Iterator[Outcome]:
        """Do all cases of one source, one `Outcome` each.

        Args:
            source: the file.
            settled: case ids to pass over.
            started: hears the row of each case before it is begun, as far as it is known then.
            dry_run: only say what would happen.
            alone: one frame after the other, even if there are seats for several.

        Raises:
            Stop: what no other case would survive either (engine lost, disk full).
        """
        record = None if self._options.overwrite else self._journal.complete(source.case, source.path)
        if record:
            yield self._complete(record)
            return
        try:
            opened = open_source(source, self._options)
            if opened.wall.shape[3] > 1 and series_path(self._journal, source).is_dir():
                raise Occupied(f"{source.case}.pvd in --out is a folder where the series belongs; move it away")
            stacks = opened.stacks(self._reconstructor.estimate if self._options.share_shifts else None)
            chosen = self._frames.choose(stacks.holds_wall(), stacks.volumes)
            todo = [frame for frame in chosen if opened.row(frame).case not in settled]
            each = map if alone else self._seats.spread
            if self._seats.count > 1 and not (dry_run or all(self._finished(opened.row(k).case, opened) for k in todo)):
                stacks.share(each)  # the first frame would keep the others waiting
        except Exception as error:  # noqa: BLE001 - whatever a file provokes concerns that file alone
            yield self._failed(Row(case=source.case, input=source.relative), source, error, dry_run=dry_run)
            return
        if opened.wall.shape[3] > 1 and not dry_run:
            self._journal.forget(source.case)

        def one(frame: int) -> Outcome:
            row = opened.row(frame)
            started(row)
            return self._frame(opened, stacks, frame, row, dry_run=dry_run)

        complete: set[str] = set()
        for outcome in each(one, todo):
            complete |= {outcome.row.case} if outcome.state in ("done", "complete") else set()
            yield outcome
        if opened.wall.shape[3] > 1 and not dry_run:
            self._write_series(opened)
            if len(complete) == len(chosen):
                study = opened.study
                remember(self._journal, source, self._options.frames, study.sha256, opened.seen, sorted(complete))

    def _frame(self, opened: Opened, stacks: Stacks, frame: int, row: Row, *, dry_run: bool) -> Outcome:
        started = time.perf_counter()
        try:
            self._claim(row.case, opened)
            record = self._finished(row.case, opened)
            if record:
                return self._complete(record)
            if not opened.wall[..., frame].any() and opened.wall.shape[3] > 1:
                return Outcome(replace(row, status="skipped", message="no wall in this frame"), "empty")
            canonical = stacks.canonical(frame)
            row = replace(row, slices=int(wall_slices(canonical.masks).sum()), step_mm=canonical.placement.step_mm)
            if dry_run:
                return Outcome(row, "planned", self._planned_paths(row.case))
            return self._reconstruct(opened, row, canonical, stacks.shared(frame), started)
        except Stop:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a case provokes concerns that case alone
            return self._failed(row, opened.source, error, dry_run=dry_run, key=opened.study.sha256)

    def _finished(self, case: str, opened: Opened) -> Record | None:
        if self._options.overwrite:
            return None
        return self._journal.complete(case, opened.source.path, opened.study.sha256)

    def _reconstruct(
        self, opened: Opened, row: Row, canonical: Canonical, shared: Shifts | None, started: float
    ) -> Outcome:
        # The frames of a cine share the reading of their file.
        reading = opened.reading / opened.wall.shape[3] + time.perf_counter() - started
        begun = time.perf_counter()
        result = self._reconstructor.reconstruct(canonical, opened.study.sha256, shared)
        measuring = time.perf_counter()
        measured = measure(canonical, result)
        encoding = time.perf_counter()
        files = case_files(row.case, result, canonical, self._options, opened.origin(row.frame), measured)
        writing = time.perf_counter() - encoding
        seconds = {"read": reading, **result.seconds, "measure": encoding - measuring, "write": writing}
        row = replace(
            told(row, result, canonical, measured.measurements), seconds=time.perf_counter() - begun + reading
        )
        record = self._journal.finish(row, files, opened.study.sha256, opened.seen)
        return Outcome(row, "done", tuple(self._journal.paths(record)), seconds)

    def _failed(self, row: Row, source: Source, error: Exception, *, dry_run: bool, key: str | None = None) -> Outcome:
        """The row of a refusal, put on record unless the case's name belongs to another input."""
        if isinstance(error, Stop):
            raise error
        code = error.code if isinstance(error, CaseError) else BUG
        row = replace(row, status="failed", error=code, message=message_of(error, source))
        ours = self._owner.get(row.case.casefold(), source) == source
        if ours and not dry_run and not self._out_of_reach(row.case, source, error):
            with contextlib.suppress(Occupied):
                self._journal.finish(row, {}, key)
        trace = "" if isinstance(error, CaseError) else "".join(traceback.format_exception(error))
        return Outcome(row, "failed", trace=trace)

    def _out_of_reach(self, case: str, source: Source, error: Exception) -> bool:
        """Whether a finished case stays as it is: that nobody can read its input now says nothing against it."""
        record = self._journal.find(case) if isinstance(error, UnreadableVolume) else None
        return record is not None and record.row.status == "ok" and digest_of(source.path) is None

    def _write_series(self, opened: Opened) -> None:
        """Tie the finished frames of a cine together for ParaView, those of earlier runs too."""
        case, count = opened.source.case, opened.wall.shape[3]
        path = series_path(self._journal, opened.source)
        frames: list[tuple[float, str]] = []
        for frame in range(count) if "vtp" in self._options.formats else ():
            record = self._journal.find(frame_name(case, frame, count))
            name = f"{frame_name(case, frame, count)}.vtp"
            if record and name in record.outputs and record.row.input == opened.source.relative:
                time_ms = record.row.time_ms
                frames.append((frame if time_ms is None else time_ms, f"{record.row.case}/{name}"))
        if frames:
            atomic.write_text(path, series(frames))
        elif path.is_file():
            path.unlink()

    def _complete(self, record: Record) -> Outcome:
        return Outcome(record.row, "complete", tuple(self._journal.paths(record)))

    def _planned_paths(self, case: str) -> tuple[Path, ...]:
        return tuple(self._journal.out / case / f"{case}.{name}" for name in self._options.formats)

    def _claim(self, case: str, opened: Opened) -> None:
        other = self._owner.get(case.casefold(), opened.source)
        if other != opened.source:
            raise CaseError(
                f"frame would be case {case!r}, which is also the file {other.relative}; rename one of them"
            )
        self._journal.admit(case)


def told(row: Row, result: "Reconstruction", canonical: Canonical, measurements: Measurements) -> Row:
    """Fill a row with what the surface and the shifts amount to."""
    shape = result.mesh.topology
    common = np.asarray(result.common_shift, np.float64)
    spread = result.spread
    return replace(
        row,
        **measurements.columns(),
        closed=bool(shape.closed),
        components=int(shape.components),
        genus=None if shape.genus is None else int(shape.genus),
        common_shift_x_mm=float(common[0]),
        common_shift_y_mm=float(common[1]),
        expected_dice=result.expected_dice,
        spread_mean_mm=None if spread is None else float(spread.mean()),
        spread_p95_mm=None if spread is None else float(np.percentile(spread, 95)),
        flags=" ".join(dict.fromkeys((*(row.flags or "").split(), *canonical.flags, *result.flags))) or None,
    )


def message_of(error: Exception, source: Source) -> str:
    """One clean line that names the file as the reports do and never its absolute path."""
    text = str(error) if isinstance(error, CaseError) else f"unexpected {type(error).__name__}: {error}"
    text = without_names(text, source).replace(str(source.path), source.relative)
    text = clean(text if isinstance(error, CaseError) else without_folders(text))
    name = Path(source.relative).name
    return text if name in text else f"{source.relative}: {text}"
