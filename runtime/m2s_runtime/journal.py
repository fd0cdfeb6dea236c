"""What is finished: one completion record per case, written last; tables for people are merged from the records.

`<out>/<case>/<case>.json` holds the sha256 of the input, the bundle, the options and every output. A case counts as
complete only when all of them match, so an interrupted or altered case is simply done again. A file whose size and time
are those on record is taken for unchanged without being read; any other is hashed.
"""

import contextlib
import errno
import hashlib
import heapq
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from m2s_runtime import atomic, strict_json
from m2s_runtime.errors import Occupied, OutputError
from m2s_runtime.nifti_files import digest_of
from m2s_runtime.record import SCHEMA, Record, Row, Seen, read_record, source_seen
from m2s_runtime.studies import COLUMNS, STUDIES, studies_of
from m2s_runtime.table import TABLE, order, to_csv


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
        folder = self.out / case
        return None if folder.is_symlink() else read_record(folder / f"{case}.json")

    def complete(self, case: str, source: Path, sha256: str | None = None) -> Record | None:
        """The record of a case, if input, bundle, options and every output still match it.

        Args:
            case: case id.
            source: the input.
            sha256: its hash (hex), where that is known; else it is taken when the looks of the file do not settle it.
        """
        record = self.find(case)
        if record is None or record.row.status != "ok" or not record.outputs:
            return None
        # Of different inputs under one name, as two versions of a data set unpacked in turn, time and size may agree.
        same = record.stamp == self._stamp | {"input": record.stamp.get("input")} and (
            record.stamp.get("input") == sha256 if sha256 else _same_input(record, source)
        )
        folder = self.out / case
        return record if same and all(_intact(folder / name, record) for name in record.outputs) else None

    def stale(self, case: str) -> bool:
        """Whether a case was done, but by another engine or version, from another bundle or with other options."""
        record = self.find(case)
        if record is None or record.row.status != "ok":
            return False
        return record.stamp != self._stamp | {"input": record.stamp.get("input")}

    def paths(self, record: Record) -> list[Path]:
        """The files of a record, in the order in which they were written."""
        return [self.out / record.row.case / name for name in record.outputs]

    def admit(self, case: str) -> None:
        """Refuse a case whose folder could not be made because something else has its name.

        Raises:
            Occupied: a link or a file.
        """
        folder = self.out / case
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise Occupied(f"{case!r} in --out is a link or a file where the folder of this case belongs; move it away")

    def finish(self, row: Row, files: Mapping[str, bytes], source: str | None, seen: Seen = ()) -> Record:
        """Put a case on disk: the files, then whatever an earlier record lists goes, names are given, the record last.

        Args:
            row: its line.
            files: name to content.
            source: sha256 of the input (hex).
            seen: `source_seen` of the input before it was read.

        Raises:
            Occupied: something that is no folder has the name of the case, or a folder the name of a file.
            OutputError: the disk is full or not writable.
        """
        folder = self._folder(row.case)
        with atomic.Staging(folder) as staging:
            written = {name: staging.add(name, data) for name, data in files.items()}
            hashes = {name: file.sha256 for name, file in written.items()}
            looks = {name: (file.size, file.changed) for name, file in written.items()}
            record = Record(SCHEMA, row, self._stamp | {"input": source or ""}, hashes, seen, looks)
            # A record that a power cut garbles or takes back is none: the case is done again.
            staging.add(f"{row.case}.json", strict_json.dumps(record).encode(), flush=False)
            self._clear(folder)
            try:
                staging.commit(flush=False)
            except OutputError as error:
                if isinstance(error.__cause__, IsADirectoryError):
                    raise Occupied(f"{row.case!r} in --out holds a folder with the name of one of its files") from error
                raise
        return record

    def forget(self, case: str) -> None:
        """Drop the record and the files of a case that is none any more, such as a study that now has frames."""
        if self.find(case) is not None:
            folder = self._folder(case)
            self._clear(folder)
            with contextlib.suppress(OSError):  # not empty: someone else's files
                folder.rmdir()

    def records(self) -> Iterator[Record]:
        """All records in the folder, of this run and of earlier ones, in the order of their cases."""
        try:
            with os.scandir(self.out) as entries:
                folders = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:  # no folder, no records; writing the tables will say so
            return
        for name in folders:
            record = self.find(name)
            if record is not None:
                yield record

    def merge(self, rows: Iterable[Row]) -> None:
        """Write `cases.csv`: `rows`, and those of the records in the folder whose cases are not among them.

        Beside it `studies.csv`, if any of the cases are phases of one heart.

        Raises:
            OutputError: it cannot be written.
        """
        fresh = sorted(rows, key=order)
        known = {row.case for row in fresh}
        recorded = (record.row for record in self.records() if record.row.case not in known)
        every = list(heapq.merge(fresh, recorded, key=order))
        atomic.write_text(self.out / TABLE, to_csv(every))
        found, path = studies_of(every), self.out / STUDIES
        if found:
            atomic.write_text(path, to_csv(found, COLUMNS))
        elif path.is_file():
            path.unlink()

    def sweep(self, case: str) -> None:
        """Clear away what a process left that was killed while it wrote a case."""
        folder = self.out / case
        if folder.is_dir() and not folder.is_symlink():
            with contextlib.suppress(OSError):
                atomic.sweep(folder)
                folder.rmdir()

    def _clear(self, folder: Path) -> None:
        """Remove a case's record, then the files that it lists."""
        old = self.find(folder.name)
        if old is None:
            return
        (folder / f"{folder.name}.json").unlink(missing_ok=True)
        for name in old.outputs:
            (folder / name).unlink(missing_ok=True)

    def _folder(self, case: str) -> Path:
        folder = self.out / case
        if case == ".." or folder.parent != self.out or folder.name != case:
            raise OutputError(f"{folder}: lies outside --out")
        try:
            folder.mkdir()
        except FileExistsError:
            self.admit(case)
            atomic.sweep(folder)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made ({error.strerror})") from error
        return folder


def _same_input(record: Record, source: Path) -> bool:
    seen = source_seen(source)
    return bool(seen) and (seen == record.seen or record.stamp.get("input") == digest_of(source))


def _intact(path: Path, record: Record) -> bool:
    try:
        seen = path.lstat()
    except OSError:
        return False
    return ((seen.st_size, seen.st_mtime_ns) == record.looks.get(path.name) and stat.S_ISREG(seen.st_mode)) or (
        _sha256(path) == record.outputs[path.name]
    )


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
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
