"""Files that are either whole or absent: a temporary name in the same folder, flushed to disk, then renamed."""

import contextlib
import errno
import hashlib
import itertools
import os
import re
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from m2s_runtime.errors import OutputError
from m2s_runtime.maker import MADE_BY, abandoned, maker

_COUNT: Final = itertools.count()
_LEFTOVER: Final = re.compile(rf"\..*\.{MADE_BY}-\d+\.tmp")
_RENAME_TRIES: Final = 6
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bytes(path: Path, data: bytes | Iterable[bytes], *, mode: int | None = None) -> str:
    """Put `data` at `path` in one step and return its sha256 (hex); `mode` holds before anyone can open it there.

    Data that come in pieces are never held whole. A link at `path` is replaced, never followed. Whatever interrupts
    this leaves the old file, if any, as it was.

    Raises:
        OutputError: the folder is missing, full or not writable.
    """
    with Staging(path.parent) as staging:
        sha256 = staging.add(path.name, data, mode=mode).sha256
        staging.commit()
    return sha256


@dataclass(frozen=True)
class Written:
    """What a file looks like on disk: sha256 (hex), bytes, time of its last change in ns."""

    sha256: str
    size: int
    changed: int


class Staging:
    """Several files of one folder that wait, whole and on disk, under temporary names; a context manager.

    A full disk or a kill before `commit` leaves the folder as it was.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: dict[str, Path] = {}

    def add(self, name: str, data: bytes | Iterable[bytes], *, mode: int | None = None, flush: bool = True) -> Written:
        """Write one file, whole or in pieces, under a temporary name.

        Without `flush` a power cut may cost or garble it.

        Raises:
            OutputError: the folder is missing, full or not writable.
        """
        temporary = self._folder / f".{name[:100]}.{maker()}-{next(_COUNT)}.tmp"
        total = hashlib.sha256()
        with _told(self._folder / name):
            with temporary.open("xb") as file:
                self._waiting[name] = temporary
                for piece in (data,) if isinstance(data, bytes) else data:
                    file.write(piece)
                    total.update(piece)
                file.flush()
                # A time of its own: the system stamps with a coarser clock, so that any later edit shows.
                now = time.time_ns()
                os.utime(file.fileno() if os.utime in os.supports_fd else temporary, ns=(now, now))
                if flush:
                    os.fsync(file.fileno())
                seen = os.fstat(file.fileno())
            if mode is not None:
                temporary.chmod(mode)
        return Written(total.hexdigest(), seen.st_size, seen.st_mtime_ns)

    def commit(self, *, flush: bool = True) -> None:
        """Give every file its name, in the order in which they were added; without `flush` a power cut may undo it.

        Raises:
            OutputError: the folder cannot be written, or a folder has one of the names.
        """
        for name in list(self._waiting):
            with _told(self._folder / name):
                _rename(self._waiting[name], self._folder / name)
            del self._waiting[name]
        if flush:
            with _told(self._folder):
                _sync_folder(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not committed."""
        for temporary in self._waiting.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> str:
    """`write_bytes` of UTF-8 text."""
    return write_bytes(path, text.encode())


def sweep(folder: Path) -> int:
    """Delete what interrupted runs left in `folder` (not below it) and return how many files that was.

    Files of a process that still lives on this machine stay; those of other machines go once they are a day old.
    """
    found = 0
    for path in folder.glob(".*.tmp"):
        match = _LEFTOVER.fullmatch(path.name)
        if match and abandoned(path, match[1], int(match[2]), own=True):
            path.unlink(missing_ok=True)
            found += 1
    return found


@contextmanager
def _told(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        remedy = "free some space" if error.errno in _FULL else "check the folder and its permissions"
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); {remedy}, or choose another place"
        ) from error


def _rename(source: Path, target: Path) -> None:
    """`os.replace`, tried again while a virus scanner or viewer on Windows holds the target open."""
    for attempt in range(_RENAME_TRIES):
        try:
            source.replace(target)
        except PermissionError:
            if os.name != "nt" or attempt == _RENAME_TRIES - 1:
                raise
            time.sleep(0.05 * 2**attempt)
        else:
            return


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system knows how."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse this for folders
            os.fsync(handle)
    finally:
        os.close(handle)
