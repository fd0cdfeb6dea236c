"""One source after the other: read, choose frames, reconstruct, record. A bad case ends itself, never the batch."""

import hashlib
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

import numpy as np

from m2s_runtime.errors import CaseError, Stop
from m2s_runtime.frames import FrameRequest, frame_name
from m2s_runtime.inputs import Source
from m2s_runtime.journal import Journal, Record, Row
from m2s_runtime.labels import LabelDecision, wall_mask
from m2s_runtime.options import Options
from m2s_runtime.outputs import case_files
from m2s_runtime.placement import Canonical, canonicalise, slice_axis
from m2s_runtime.slices import BoolArray, wall_slices
from m2s_runtime.text import clean
from m2s_runtime.volume import Study, read_study

if TYPE_CHECKING:
    from m2s_runtime.pipeline import Reconstruction

BUG: Final = "bug"
"""Error code of a failure that nobody foresaw."""


class Reconstructs(Protocol):
    """What the batch needs of `m2s_runtime.pipeline.Reconstructor`."""

    def reconstruct(self, canonical: Canonical, noise_key: str) -> "Reconstruction":
        """Turn a canonical stack into a surface."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        row: its line of `cases.csv`.
        state: `done` now, `complete` since an earlier run, `planned` (dry run), `empty` (a frame without wall) or
            `failed`.
        paths: its files, the mesh first.
        seconds: time per stage.
        trace: where an unforeseen error arose.
    """

    row: Row
    state: Literal["done", "complete", "planned", "empty", "failed"]
    paths: tuple[Path, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    trace: str = ""


@dataclass(frozen=True)
class _Opened:
    """A source that could be read, with the decisions that hold for all of its frames."""

    source: Source
    study: Study
    wall: BoolArray
    decision: LabelDecision
    reading: float
    """Seconds that reading took."""

    def holds_wall(self) -> list[bool]:
        """For each frame, whether any voxel is wall."""
        return [bool(self.wall[..., frame].any()) for frame in range(self.wall.shape[3])]

    def row(self, frame: int) -> Row:
        """The row of one frame as far as it is known before the frame is touched."""
        warnings = (*self.study.warnings, *self.decision.warnings)
        count = self.wall.shape[3]
        return Row(
            case=frame_name(self.source.case, frame, count),
            input=self.source.relative,
            frame=frame if count > 1 else None,
            labels=clean(self.decision.text),
            message=clean("; ".join(warnings)) or None,
        )


class Batch:
    """Runs sources with one reconstructor; keeps every row for the table at the end."""

    def __init__(
        self, sources: Sequence[Source], reconstructor: Reconstructs, journal: Journal, options: Options
    ) -> None:
        """Prepare; nothing is read or written yet. A bad `options.frames` raises `UsageProblem`."""
        self._reconstructor = reconstructor
        self._journal = journal
        self._options = options
        self._frames = FrameRequest.parse(options.frames)
        self._owner = {source.case.casefold(): source for source in sources}
        self.rows: list[Row] = []

    def run(self, source: Source, *, dry_run: bool = False) -> Iterator[Outcome]:
        """Do all cases of one source, one `Outcome` each; with `dry_run` only say what would happen.

        Raises:
            Stop: what no other case would survive either (engine lost, disk full).
        """
        for outcome in self._source(source, dry_run=dry_run):
            self.rows.append(outcome.row)
            yield outcome

    def _source(self, source: Source, *, dry_run: bool) -> Iterator[Outcome]:
        record = self._still_complete(source)
        if record:
            yield self._complete(record)
            return
        try:
            opened = _open(source, self._options.labels)
            stacks = _Stacks(opened)
            chosen = self._frames.choose(opened.holds_wall(), stacks.cavity)
        except Exception as error:  # noqa: BLE001 - whatever a file provokes concerns that file alone
            yield self._failed(Row(case=source.case, input=source.relative), source, error, dry_run=dry_run)
            return
        if opened.wall.shape[3] > 1 and not dry_run:
            self._journal.forget(source.case)
        for frame in chosen:
            yield self._frame(opened, stacks, frame, dry_run=dry_run)

    def _still_complete(self, source: Source) -> Record | None:
        """The record of a single-frame source that needs no second look; hashing is cheaper than reading."""
        if self._options.overwrite or self._journal.find(source.case) is None or not source.path.is_file():
            return None
        try:
            with source.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:  # the reader will say what is wrong
            return None
        return self._journal.complete(source.case, digest)

    def _frame(self, opened: _Opened, stacks: "_Stacks", frame: int, *, dry_run: bool) -> Outcome:
        started = time.perf_counter()
        row = opened.row(frame)
        try:
            self._claim(row.case, opened)
            record = None if self._options.overwrite else self._journal.complete(row.case, opened.study.sha256)
            if record:
                return self._complete(record)
            if not opened.wall[..., frame].any() and opened.wall.shape[3] > 1:
                return Outcome(replace(row, status="skipped", message="no wall in this frame"), "empty")
            canonical = stacks.canonical(frame)
            row = replace(row, slices=int(wall_slices(canonical.masks).sum()), step_mm=canonical.placement.step_mm)
            if dry_run:
                return Outcome(row, "planned", self._planned_paths(row.case))
            return self._reconstruct(opened, row, canonical, started)
        except Stop:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a case provokes concerns that case alone
            return self._failed(row, opened.source, error, dry_run=dry_run, key=opened.study.sha256)

    def _reconstruct(self, opened: _Opened, row: Row, canonical: Canonical, started: float) -> Outcome:
        # The frames of a cine share the reading of their file.
        reading = opened.reading / opened.wall.shape[3] + time.perf_counter() - started
        begun = time.perf_counter()
        result = self._reconstructor.reconstruct(canonical, opened.study.sha256)
        encoding = time.perf_counter()
        files = case_files(row.case, result, canonical, self._options)
        seconds = {"read": reading, **result.seconds, "write": time.perf_counter() - encoding}
        row = replace(measured(row, result, canonical), seconds=time.perf_counter() - begun + reading)
        record = self._journal.finish(row, files, opened.study.sha256)
        return Outcome(row, "done", tuple(self._journal.paths(record)), seconds)

    def _failed(self, row: Row, source: Source, error: Exception, *, dry_run: bool, key: str | None = None) -> Outcome:
        """The row of a refusal, put on record unless the case's name belongs to another input."""
        if isinstance(error, Stop):
            raise error
        code = error.code if isinstance(error, CaseError) else BUG
        row = replace(row, status="failed", error=code, message=message_of(error, source))
        if not dry_run and self._owner.get(row.case.casefold(), source) == source:
            self._journal.finish(row, {}, key)
        trace = "" if isinstance(error, CaseError) else "".join(traceback.format_exception(error))
        return Outcome(row, "failed", trace=trace)

    def _complete(self, record: Record) -> Outcome:
        return Outcome(record.row, "complete", tuple(self._journal.paths(record)))

    def _planned_paths(self, case: str) -> tuple[Path, ...]:
        return tuple(self._journal.out / case / f"{case}.{name}" for name in self._options.formats)

    def _claim(self, case: str, opened: _Opened) -> None:
        other = self._owner.get(case.casefold(), opened.source)
        if other != opened.source:
            raise CaseError(
                f"frame would be case {case!r}, which is also the file {other.relative}; rename one of them"
            )


class _Stacks:
    """Canonical stacks of a study's frames, each made once."""

    def __init__(self, opened: _Opened) -> None:
        self._opened = opened
        self._made: dict[int, Canonical] = {}

    def canonical(self, frame: int) -> Canonical:
        if frame not in self._made:
            self._made[frame] = canonicalise(self._opened.wall[..., frame], self._opened.study.affine)
        return self._made[frame]

    def cavity(self, frame: int) -> float | None:
        """Volume in mm³ of what the wall encloses, slice by slice; None when the frame is refused."""
        try:
            canonical = self.canonical(frame)
        except CaseError:
            return None
        return float(canonical.pool[:, 2].sum()) * canonical.placement.step_mm


def _open(source: Source, labels: str) -> _Opened:
    started = time.perf_counter()
    study = read_study(source.path)
    wall, decision = wall_mask(study.labels, labels, slice_axis(study.affine))
    return _Opened(source, study, wall, decision, time.perf_counter() - started)


def measured(row: Row, result: "Reconstruction", canonical: Canonical) -> Row:
    """Fill a row with what the surface and the shifts amount to."""
    from m2s_runtime.surface import signed_volume, topology

    shape = topology(result.mesh)
    common = np.asarray(result.common_shift, np.float64)
    held = wall_slices(canonical.masks)
    remaining = (np.asarray(result.shifts, np.float64) - common)[held]
    spread = result.spread
    return replace(
        row,
        volume_ml=float(signed_volume(result.mesh)) / 1000.0,
        closed=bool(shape.closed),
        components=int(shape.components),
        genus=None if shape.genus is None else int(shape.genus),
        common_shift_x_mm=float(common[0]),
        common_shift_y_mm=float(common[1]),
        mean_shift_mm=float(np.abs(remaining).mean()),
        agreement_mean=float(result.agreement[held].mean()),
        agreement_least=float(result.agreement[held].min()),
        spread_mean_mm=None if spread is None else float(spread.mean()),
        spread_p95_mm=None if spread is None else float(np.percentile(spread, 95)),
        flags=" ".join(dict.fromkeys((*canonical.flags, *result.flags))) or None,
    )


def message_of(error: Exception, source: Source) -> str:
    """One clean line that names the file as the reports do and never its absolute path."""
    text = str(error) if isinstance(error, CaseError) else f"unexpected {type(error).__name__}: {error}"
    text = clean(text.replace(str(source.path), source.relative))
    name = Path(source.relative).name
    return text if name in text else f"{source.relative}: {text}"
