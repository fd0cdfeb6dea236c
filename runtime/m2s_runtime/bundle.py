"""Model bundles: a folder with `manifest.json` and the files it lists, verified before anything is used."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from m2s_runtime.errors import BundleError
from m2s_runtime.manifest import SCHEMA, FileEntry, Manifest, faults
from m2s_runtime.strict_json import Misfit, loads

DEFAULT_BUNDLE: Final = "compact"
"""The one that `m2s-run` uses unless told otherwise, installed with the package."""

MANIFEST: Final = "manifest.json"
_LARGEST_MANIFEST: Final = 1 << 20
_LARGEST_FILE: Final = (1 << 31) - 1
"""More than protobuf can hold, and so more than any graph."""

_BARE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_SCHEMA_LINE: Final = re.compile(rb'"schema"\s*:\s*(-?\d+)')
_REMEDY: Final = "export it anew with m2s-export or reinstall mask2surface"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        name: from the manifest.
        path: its folder.
        sha256: of `manifest.json`, hexadecimal; through the hashes in it, of everything.
        manifest: what it says.
    """

    name: str
    path: Path
    sha256: str
    manifest: Manifest

    def read(self, file: str) -> bytes:
        """Bytes of a listed file, hashed again: what is used is what was verified.

        Raises:
            BundleError: not listed, missing, unreadable or altered.
        """
        entry = self.manifest.files.get(file)
        if entry is None:
            raise BundleError(f"{self.path}: {file} is not listed in {MANIFEST}; {_REMEDY}")
        return _verified(self.path, file, entry)


def load_bundle(path_or_name: str | Path | None = None) -> Bundle:
    """Finds and verifies a bundle.

    Args:
        path_or_name: a folder holding `manifest.json`, or the name of a bundle in the folder that the environment
            variable M2S_HOME names, or of an installed one; None means M2S_HOME if that is a bundle itself, else
            `DEFAULT_BUNDLE`.

    Raises:
        BundleError: not found, of another schema, incomplete, altered, or with graphs that this runtime cannot drive.
    """
    folder = find_bundle(path_or_name)
    text = _read(folder / MANIFEST, _LARGEST_MANIFEST)
    manifest = _parsed(folder, text)
    for file, entry in manifest.files.items():
        _verified(folder, file, entry)
    return Bundle(manifest.name, folder, hashlib.sha256(text).hexdigest(), manifest)


def find_bundle(path_or_name: str | Path | None = None) -> Path:
    """The folder that `load_bundle` would verify.

    Raises:
        BundleError: there is none; the message says where it was sought.
    """
    wanted = DEFAULT_BUNDLE if path_or_name is None else str(path_or_name)
    if path_or_name is not None and _holds_manifest(Path(wanted)):
        return Path(wanted)
    home = os.environ.get("M2S_HOME")
    if home and not Path(home).is_dir():
        raise BundleError(f"M2S_HOME={home}: no such folder; set it to a folder of bundles, or unset it")
    if home and path_or_name is None and _holds_manifest(Path(home)):
        return Path(home)
    if not _BARE_NAME.fullmatch(wanted):
        raise BundleError(f"{wanted}: no {MANIFEST} there; --model takes the folder or the name of a bundle")
    places = _homes()
    for place in places:
        if _holds_manifest(place / wanted):
            return place / wanted
    sought = ", ".join(str(p) for p in places)
    raise BundleError(f"no bundle {wanted!r} in {sought}; give its folder with --model or set M2S_HOME")


def _holds_manifest(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).is_file()
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror or error}; give a folder that can be read") from error


def _homes() -> list[Path]:
    """Folders of bundles, the first the one that counts."""
    package = Path(__file__).resolve().parent
    home = os.environ.get("M2S_HOME")
    installed = [package / "models", package.parent.parent / "models"]
    return [*([Path(home)] if home else []), *(p for p in installed if p.is_dir() or p == installed[0])]


def _parsed(folder: Path, text: bytes) -> Manifest:
    schema = _SCHEMA_LINE.search(text)
    if schema and int(schema[1]) != SCHEMA:
        raise BundleError(
            f"{folder / MANIFEST}: schema {int(schema[1])}, but this version of mask2surface reads schema {SCHEMA}; "
            + ("update mask2surface" if int(schema[1]) > SCHEMA else "export the bundle anew with m2s-export")
        )
    try:
        manifest = loads(Manifest, text)
    except Misfit as fault:
        raise BundleError(f"{folder / MANIFEST}: {fault}; {_REMEDY}") from fault
    found = faults(manifest)
    if found:
        raise BundleError(f"{folder / MANIFEST}: {'; '.join(found)}; {_REMEDY}")
    return manifest


def _verified(folder: Path, file: str, entry: FileEntry) -> bytes:
    path = folder / file
    if not _BARE_NAME.fullmatch(file) or path.resolve().parent != folder.resolve():
        raise BundleError(f"{folder / MANIFEST}: {file!r} lies outside the bundle's folder; {_REMEDY}")
    if entry.size > _LARGEST_FILE:
        raise BundleError(f"{path}: listed with {entry.size} bytes, more than an ONNX file can have; {_REMEDY}")
    data = _read(path, entry.size)
    if len(data) != entry.size:
        raise BundleError(f"{path}: {len(data)} bytes instead of {entry.size}; {_REMEDY}")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(f"{path}: altered since it was exported (sha256 differs); {_REMEDY}")
    return data


def _read(path: Path, most: int) -> bytes:
    """At most `most` + 1 bytes of a regular file."""
    try:
        if not path.is_file():
            raise BundleError(f"{path}: missing; {_REMEDY}")
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}; {_REMEDY}") from error
