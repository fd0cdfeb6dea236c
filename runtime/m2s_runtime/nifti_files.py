"""NIfTI files by name: single files, and pairs of a header (`.hdr`) and its voxels (`.img`), each plain or gzip."""

import hashlib
import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from typing import Final

from m2s_runtime.errors import UnreadableVolume
from m2s_runtime.limits import Limits

_HEADERS: Final = (".hdr", ".hdr.gz")
_VOXELS: Final = (".img", ".img.gz")
SUFFIXES: Final = (".nii.gz", ".nii", *_HEADERS, *_VOXELS)
"""Of names that are taken for label maps; upper case will do."""


def split_suffix(name: str) -> tuple[str, str]:
    """A file name as what comes before the NIfTI suffix, and the suffix as it is written (empty when there is none)."""
    length = max((len(s) for s in SUFFIXES if name.lower().endswith(s)), default=0)
    return name[: len(name) - length], name[len(name) - length :]


def header_of(path: Path) -> Path:
    """The header of the pair that an `.img` file belongs to; any other path, and one without header, as it is."""
    if split_suffix(path.name)[1].lower() in _VOXELS:
        return _partner(path, _HEADERS) or path
    return path


def voxels_of(header: Path) -> Path | None:
    """The file with the voxels of the pair that a `.hdr` file begins, if it lies beside it."""
    return _partner(header, _VOXELS) if split_suffix(header.name)[1].lower() in _HEADERS else None


def files_of(path: Path) -> list[Path]:
    """The file itself; of a pair, given by its header, the header and the voxels."""
    voxels = voxels_of(path)
    return [path] if voxels is None else [path, voxels]


def digest_of(path: Path) -> str | None:
    """Sha256 (hex) of a file; of a pair that of the header followed by the voxels; None of what cannot be read."""
    try:
        with ExitStack() as stack:
            # Opening a pipe would wait for its writer.
            opened = [stack.enter_context(file.open("rb")) for file in files_of(path) if file.is_file()]
            return digest(opened) if opened else None
    except OSError:
        return None


def digest(files: Iterable[BufferedReader]) -> str:
    """Sha256 (hex) of open files, one after the other, each from its start."""
    total = hashlib.sha256()
    for file in files:
        file.seek(0)
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()


def open_regular(path: Path, limits: Limits) -> BufferedReader:
    """Open a regular file; a pipe or device could block for ever, so it is looked at before it is opened.

    Raises:
        UnreadableVolume: nothing of that name, something else than a file, or one that is too large.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        told = "is a link to nothing: restore what it pointed to" if path.is_symlink() else "no such file"
        raise UnreadableVolume(told) from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableVolume("not a regular file: give the .nii, .nii.gz or .hdr file itself")
    mib = -(-status.st_size // 2**20)
    if mib > limits.file_mib:
        raise UnreadableVolume(
            f"{mib} MiB on disk, over the limit of {limits.file_mib}: store it as uint8, or add --max-file-mib {mib}"
        )
    return path.open("rb")


def _partner(path: Path, suffixes: Iterable[str]) -> Path | None:
    """The file of the same name with one of other suffixes, packed or not as this one where both are there."""
    stem, own = split_suffix(path.name)
    packed = own.lower().endswith(".gz")
    for suffix in sorted(suffixes, key=lambda s: s.endswith(".gz") != packed):
        for written in (suffix, suffix.upper()):
            partner = path.with_name(stem + written)
            if os.path.isfile(partner):  # noqa: PTH113 - says no where `Path.is_file` raises, as in a locked folder
                return partner
    return None
