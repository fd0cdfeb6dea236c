"""One run at a time in an output folder, or the shards of one."""

import contextlib
import errno
import os
import platform
import sys
import time
from pathlib import Path
from typing import BinaryIO, Final

from m2s_runtime.errors import OutputError
from m2s_runtime.shards import Shard

_PREFIX: Final = ".lock-"
_TRIES: Final = 5
_UNSUPPORTED: Final = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class Lock:
    """A file in the folder, locked through the operating system, which lets go of it however the process ends.

    Two runs may share a folder when they are different shards of the same number.
    """

    def __init__(self, out: Path, shard: Shard) -> None:
        self._out, self._shard = out, shard
        self._path = out / f"{_PREFIX}{shard.name}"
        self._file: BinaryIO | None = None

    def acquire(self) -> bool:
        """Take the lock; False when the file system knows no locks.

        Raises:
            OutputError: another run is under way in the folder.
        """
        try:
            self._file = self._taken()
            for other in self._rivals():
                _probe(other)
        except OSError as error:
            self.release()
            if error.errno in _UNSUPPORTED:
                return False
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{self._path}: cannot be locked ({error.strerror})") from error
        return True

    def release(self) -> None:
        """Let go; the file goes too."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._file.close()
            self._file = None

    def _taken(self) -> BinaryIO:
        for attempt in range(_TRIES):
            file = open(self._path, "a+b", opener=_not_a_link)  # noqa: SIM115 - kept open
            if _locked(file) and _is(file, self._path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()} since {time.ctime()}".encode())
                file.flush()
                return file
            file.close()
            time.sleep(0.05 * 2**attempt)  # held for an instant by `_probe`, or just removed
        raise _in_use(self._path)

    def _rivals(self) -> list[Path]:
        same = f"-of-{self._shard.count}"
        return [path for path in self._out.glob(f"{_PREFIX}*") if path != self._path and not path.name.endswith(same)]


def _not_a_link(path: str, flags: int) -> int:
    """Open without following: a link would have what it leads to truncated."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _probe(path: Path) -> None:
    """Refuse when a run of other shards is under way; the file of one that died goes."""
    for attempt in range(_TRIES):
        with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
            if not _locked(file):
                time.sleep(0.05 * 2**attempt)  # another run may look at it in the same instant
                continue
            path.unlink()
        return
    raise _in_use(path)


def _in_use(path: Path) -> OutputError:
    try:
        owner = path.read_text(errors="replace")
    except OSError:
        owner = ""
    who = owner or "unknown"
    return OutputError(
        f"--out {path.parent}: another run is under way there ({who}); wait for it, or choose another --out"
    )


def _is(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _locked(file: BinaryIO) -> bool:
        """Lock an open file unless someone else has; a byte far behind its text, which stays readable."""
        file.seek(1 << 20)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _locked(file: BinaryIO) -> bool:
        """Lock an open file unless someone else has."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
