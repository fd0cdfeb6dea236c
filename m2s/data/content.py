"""What marks the contents of files, so that what was made of other contents is never taken for theirs."""

import hashlib
from functools import lru_cache
from pathlib import Path


def content_mark(*files: Path) -> str:
    """Eight hex digits of the sha256 of files; `unread` where one cannot be read, which its reader will tell."""
    try:
        return _mark(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))
    except OSError:
        return "unread"


@lru_cache(maxsize=1024)
def _mark(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of files as they are at that time and size, for a name is asked for many times."""
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path, *_ in files)).hexdigest()[:8]
