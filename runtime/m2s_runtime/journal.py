"""What is finished: one completion record per case, written last; tables for people are merged from the records.

`<out>/<case>/<case>.json` holds the sha256 of the input, the bundle, the options and every output. A case counts as
complete only when all of them match, so an interrupted or altered case is simply done again.
"""

import contextlib
import csv
import dataclasses
import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from m2s_runtime import atomic, strict_json
from m2s_runtime.errors import OutputError
from m2s_runtime.text import csv_cell

SCHEMA: Final[Literal[1]] = 1
TABLE: Final = "cases.csv"
RUN: Final = "run.json"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `cases.csv`; None where a value does not apply.

    Attributes:
        case: case id.
        input: input file, relative to the folder that was given.
        frame: frame of a cine, from 0.
        status: `ok` (outputs are complete), `failed`, or `skipped` (a frame without wall).
        error: short code of the refusal.
        message: the refusal, or warnings of a case that is ok.
        labels: what was taken for the wall, and why.
        slices: acquired slices that hold wall and were used.
        step_mm: distance between them.
        volume_ml: volume of the wall.
        closed: whether the surface is closed.
        components: connected parts of the surface.
        genus: handles of the surface, 0 for the wall of a cup.
        common_shift_x_mm: area-weighted mean of the shifts along x, which the placement adds back; near zero because
            `canonicalise` already centres the pool.
        common_shift_y_mm: the same along y.
        mean_shift_mm: mean |component| of the shifts without it, over the slices with wall.
        agreement_mean: Dice of re-aligned slice and reconstruction in its plane, mean over the slices with wall.
        agreement_least: the same of the worst slice.
        spread_mean_mm: spread of the posterior samples, mean over the vertices; None with a single sample.
        spread_p95_mm: its 95th percentile.
        flags: what deserves a look, separated by blanks.
        seconds: time spent on the case.
    """

    case: str
    input: str
    frame: int | None = None
    status: str = "ok"
    error: str | None = None
    message: str | None = None
    labels: str | None = None
    slices: int | None = None
    step_mm: float | None = None
    volume_ml: float | None = None
    closed: bool | None = None
    components: int | None = None
    genus: int | None = None
    common_shift_x_mm: float | None = None
    common_shift_y_mm: float | None = None
    mean_shift_mm: float | None = None
    agreement_mean: float | None = None
    agreement_least: float | None = None
    spread_mean_mm: float | None = None
    spread_p95_mm: float | None = None
    flags: str | None = None
    seconds: float | None = None


COLUMNS: Final = tuple(f.name for f in dataclasses.fields(Row))


@dataclass(frozen=True)
class Record:
    """The completion record of a case: its row, the hashes (hex) of what made it and of the files it has."""

    schema: Literal[1]
    row: Row
    stamp: dict[str, str]
    outputs: dict[str, str]


class Journal:
    """The output folder and the records in it."""

    def __init__(self, out: Path, *, bundle: str, options: str) -> None:
        """Speak for `out`, in a run with the given bundle and options (sha256, hex)."""
        self.out = out
        self._stamp = {"bundle": bundle, "options": options}

    def open(self) -> None:
        """Make the folder, check that it takes files and clear what an interrupted run left in it.

        Raises:
            OutputError: it cannot be made or written.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            atomic.sweep(self.out)
        except OSError as error:
            raise OutputError(f"--out {self.out}: not usable as a folder ({error.strerror})") from error
        probe = self.out / ".writable"
        atomic.write_bytes(probe, b"")
        probe.unlink(missing_ok=True)

    def check(self) -> None:
        """Tell whether `open` would succeed, and leave everything as it is.

        Raises:
            OutputError: the folder, or the nearest one above it that exists, cannot be written.
        """
        folder = self.out
        try:
            while not _is_folder(folder):
                folder = folder.parent
            # Without a name, or gone at once: nobody sees this file.
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OutputError(
                f"--out {self.out}: could not be written ({error.strerror or error}); choose another --out"
            ) from error

    def find(self, case: str) -> Record | None:
        """The record of a case, complete or not; None when there is none that can be read."""
        return read_record(self.out / case / f"{case}.json")

    def complete(self, case: str, source: str) -> Record | None:
        """The record of a case, if input (sha256), bundle, options and every output still match it."""
        record = self.find(case)
        if record is None or record.row.status != "ok" or record.stamp != self._stamp | {"input": source}:
            return None
        folder = self.out / case
        intact = all(_sha256(folder / name) == digest for name, digest in record.outputs.items())
        return record if intact and record.outputs else None

    def paths(self, record: Record) -> list[Path]:
        """The files of a record, in the order in which they were written."""
        return [self.out / record.row.case / name for name in record.outputs]

    def finish(self, row: Row, files: Mapping[str, bytes], source: str | None) -> Record:
        """Put a case on disk: whatever an earlier record lists goes, then the files, the record last.

        Raises:
            OutputError: the disk is full, not writable, or the case's folder is a link to elsewhere.
        """
        folder = self._folder(row.case)
        self._clear(folder)
        outputs = {name: atomic.write_bytes(folder / name, data) for name, data in files.items()}
        record = Record(SCHEMA, row, self._stamp | {"input": source or ""}, outputs)
        atomic.write_text(folder / f"{row.case}.json", strict_json.dumps(record))
        return record

    def forget(self, case: str) -> None:
        """Drop the record and the files of a case that is none any more, such as a study that now has frames."""
        if self.find(case) is not None:
            folder = self._folder(case)
            self._clear(folder)
            with contextlib.suppress(OSError):  # not empty: someone else's files
                folder.rmdir()

    def records(self) -> Iterator[Record]:
        """All records in the folder, of this run and of earlier ones."""
        try:
            folders = sorted(self.out.iterdir())
        except OSError:  # no folder, no records; writing the tables will say so
            return
        for folder in folders:
            record = self.find(folder.name) if folder.is_dir() and not folder.is_symlink() else None
            if record is not None:
                yield record

    def merge(self, rows: Iterable[Row], run: Mapping[str, Any]) -> None:
        """Write `cases.csv` (`rows`, and the records in the folder of cases not among them) and `run.json`."""
        table = list(rows)
        known = {row.case for row in table}
        table += [record.row for record in self.records() if record.row.case not in known]
        table.sort(key=lambda row: (row.case, row.input, -1 if row.frame is None else row.frame))
        atomic.write_text(self.out / TABLE, to_csv(table))
        atomic.write_text(self.out / RUN, json.dumps(run, indent=1) + "\n")

    def _clear(self, folder: Path) -> None:
        """Remove a case's record, then the files that it lists."""
        old = self.find(folder.name)
        (folder / f"{folder.name}.json").unlink(missing_ok=True)
        for name in old.outputs if old else ():
            (folder / name).unlink(missing_ok=True)

    def _folder(self, case: str) -> Path:
        folder = self.out / case
        if folder.is_symlink() or case == ".." or folder.parent != self.out or folder.name != case:
            raise OutputError(f"{folder}: is a link or lies outside --out; remove it")
        try:
            folder.mkdir(exist_ok=True)
            atomic.sweep(folder)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made ({error.strerror})") from error
        return folder


def to_csv(rows: Iterable[Row]) -> str:
    """The table as text, with a header line; no field can be taken for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([csv_cell(getattr(row, column)) for column in COLUMNS] for row in rows)
    return text.getvalue()


def read_record(path: Path) -> Record | None:
    """Read a completion record; None when it is missing, cut short, of another schema or made by someone else."""
    try:
        record = strict_json.loads(Record, path.read_bytes())
    except (OSError, strict_json.Misfit):
        return None
    plain = all(Path(name).name == name for name in record.outputs)
    return record if plain and path.name == f"{record.row.case}.json" else None


def _is_folder(path: Path) -> bool:
    """False where nothing is; OSError where something else is, or what cannot be looked at."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return True


def _sha256(path: Path) -> str | None:
    """Hash of a regular file; None where there is none."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
