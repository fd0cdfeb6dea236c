"""Names that tell which process made a temporary file or folder, and whether that process is gone."""

import hashlib
import os
import platform
import time
from pathlib import Path
from typing import Final

MADE_BY: Final = r"([0-9a-f]{8})-(\d+)"
"""Regular expression of `maker()`; its groups are the arguments `host` and `pid` of `abandoned`."""
_HOST: Final = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_STALE_SECONDS: Final = 86400.0


def maker() -> str:
    """This process, for a name: a digest of the machine's name and the process number."""
    return f"{_HOST}-{os.getpid()}"


def abandoned(path: Path, host: str, pid: int, *, own: bool = False) -> bool:
    """Whether the process that made `path` is gone; where it cannot be asked for, a day is long enough.

    Args:
        path: file or folder.
        host: first group of `MADE_BY` in its name.
        pid: second group.
        own: whether what bears this process's own number is an earlier one's: containers give the same numbers again.
    """
    if host == _HOST and os.name != "nt":
        return (own and pid == os.getpid()) or not _alive(pid)
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
    return not _ended(pid)


def _ended(pid: int) -> bool:
    """Whether nothing but the entry in Linux's process table is left, which a container without init never clears."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:1]
    except OSError:
        return False
    return state in (["Z"], ["X"])
