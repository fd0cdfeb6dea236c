"""Files that are either whole or absent: a temporary name in the same folder, flushed to disk, then renamed."""

import contextlib
import hashlib
import itertools
import os
import platform
import re
import time
from pathlib import Path
from typing import Final

from m2s_runtime.errors import OutputError

_HOST: Final = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_COUNT: Final = itertools.count()
_LEFTOVER: Final = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-\d+\.tmp")
_STALE_SECONDS: Final = 86400.0
_RENAME_TRIES: Final = 6


def write_bytes(path: Path, data: bytes) -> str:
    """Put `data` at `path` in one step and return its sha256 (hex).

    A link at `path` is replaced, never followed. Whatever interrupts this leaves the old file, if any, as it was.

    Raises:
        OutputError: the folder is missing, full or not writable.
    """
    temporary = path.with_name(f".{path.name[:100]}.{_HOST}-{os.getpid()}-{next(_COUNT)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another --out"
        ) from error
    return hashlib.sha256(data).hexdigest()


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
        if match and _abandoned(path, match[1], int(match[2])):
            path.unlink(missing_ok=True)
            found += 1
    return found


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


def _abandoned(path: Path, host: str, pid: int) -> bool:
    if host == _HOST and os.name != "nt":
        return pid == os.getpid() or not _alive(pid)
    try:
        return time.time() - path.stat().st_mtime > _STALE_SECONDS
    except FileNotFoundError:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
