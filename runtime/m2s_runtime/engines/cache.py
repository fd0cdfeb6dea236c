"""The user's own folder of built TensorRT engines: private, keyed, checked before a byte of it is executed.

Deserialising an engine runs native code that nobody can inspect, so an engine is used only when the folder and the
files belong to this user, nobody else can write them, and the sidecar that the build left says the same as the key that
is wanted and as the bytes that are there. Windows knows neither owner nor mode here; there the folder's own access list
has to do.
"""

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from m2s_runtime.atomic import sweep, write_bytes
from m2s_runtime.errors import EngineError, OutputError
from m2s_runtime.strict_json import dumps, loads
from m2s_runtime.versions import version

Flavour = Literal["tensorrt", "tensorrt_rtx"]

SCHEMA: Final = 1
_LARGEST_SIDECAR: Final = 16 << 20
_AT_ONCE: Final = 1 << 26
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:,=+-]*")
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_READ: Final = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_KEPT_BY_OWNER: Final = hasattr(os, "getuid")
_REMEDY: Final = "delete it and build anew with `m2s-export --engine trt`"


@dataclass(frozen=True)
class EngineKey:
    """What an engine is good for; nothing else may use it.

    Attributes:
        onnx_sha256: of the graph it was built from, hexadecimal.
        precision: arithmetic of that graph, `float32` or `float16`.
        profile: its batch sizes, from `m2s_runtime.manifest.profile_text`.
        flavour: Python module that built it, `tensorrt` or `tensorrt_rtx`.
        version: full version of that module.
        arch: GPU architecture, such as `sm89`.
    """

    onnx_sha256: str
    precision: str
    profile: str
    flavour: Flavour
    version: str
    arch: str

    def __post_init__(self) -> None:
        """Refuse values that are no words.

        Raises:
            ValueError: a field is empty or holds characters that have no place in a file name.
        """
        for name, value in asdict(self).items():
            if not _WORD.fullmatch(value):
                raise ValueError(f"engine key: {name} is {value!r}")

    @property
    def stem(self) -> str:
        """File name without suffix: readable in front, unique behind."""
        digest = hashlib.sha256(dumps(self).encode()).hexdigest()
        return f"{self.flavour}-{self.version}-{self.arch}-{self.precision}-{digest[:20]}"


@dataclass(frozen=True)
class Sidecar:
    """What lies beside an engine: key, sha256 and size of the engine, the program and time of the build, layer names.

    The layers are the engine's own, a line each with shapes and dtypes, where the builder tells; else the network's.
    """

    schema: int
    key: EngineKey
    sha256: str
    size: int
    mask2surface: str
    built: str
    layers: tuple[str, ...]


class EngineCache:
    """A folder of engines, each `<stem>.engine` with its `<stem>.json`; the latter is written last."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Use `folder`, or `default_folder()`; nothing is created before something is stored."""
        self.folder: Final = Path(folder) if folder else default_folder()

    def find(self, key: EngineKey) -> bytes | None:
        """The engine built for `key`, or None when there is none.

        Raises:
            EngineError: the folder or a file is a link, belongs to somebody else or can be written by others; a file
                is altered or truncated; the sidecar is about another version, architecture or graph.
        """
        if not self._exists():
            return None
        sidecar = self.sidecar(key)
        if sidecar is None:
            return None
        path = self.folder / f"{key.stem}.engine"
        data = _owned_bytes(path, sidecar.size)
        if data is None:
            raise EngineError(f"{path}: missing, though its sidecar is there; {_REMEDY}")
        if len(data) != sidecar.size or hashlib.sha256(data).hexdigest() != sidecar.sha256:
            raise EngineError(f"{path}: truncated or altered since it was built; {_REMEDY}")
        return data

    def sidecar(self, key: EngineKey) -> Sidecar | None:
        """What was noted when the engine for `key` was built, or None.

        Raises:
            EngineError: as for `find`.
        """
        path = self.folder / f"{key.stem}.json"
        text = _owned_bytes(path, _LARGEST_SIDECAR) if self._exists() else None
        if text is None:
            return None
        try:
            sidecar = loads(Sidecar, text)
        except ValueError as fault:  # a Misfit, or a key made of no words
            raise EngineError(f"{path}: {fault}; {_REMEDY}") from fault
        wanted, found = asdict(key), asdict(sidecar.key)
        wrong = [f"{name} {found[name]}, not {wanted[name]}" for name in wanted if found[name] != wanted[name]]
        if sidecar.schema != SCHEMA:
            wrong.append(f"schema {sidecar.schema}, not {SCHEMA}")
        if wrong:
            raise EngineError(f"{path}: tells of {', '.join(wrong)}; {_REMEDY}")
        return sidecar

    def store(self, key: EngineKey, engine: bytes, layers: Sequence[str] = ()) -> Path:
        """Puts an engine into the cache in place of an older one, whole or not at all, and returns its path.

        Raises:
            EngineError: the folder is not private to this user.
            OutputError: it cannot be written.
        """
        path = self.folder / f"{key.stem}.engine"
        sidecar = Sidecar(
            SCHEMA, key, hashlib.sha256(engine).hexdigest(), len(engine), version(),
            datetime.now(UTC).isoformat(timespec="seconds"), tuple(layers),
        )  # fmt: skip
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._exists()
            sweep(self.folder)
            # Without its sidecar an engine does not count: the old one goes first, the new one comes last.
            path.with_suffix(".json").unlink(missing_ok=True)
            write_bytes(path, engine, mode=0o600)
            write_bytes(path.with_suffix(".json"), dumps(sidecar).encode(), mode=0o600)
        except OSError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            raise OutputError(
                f"{path}: cannot be written ({cause.strerror or cause}); choose another --engine-dir"
            ) from error
        return path

    def _exists(self) -> bool:
        """Whether the folder is there.

        Raises:
            EngineError: it is not this user's alone.
        """
        try:
            state = self.folder.lstat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise EngineError(
                f"{self.folder}: {error.strerror or error}; choose another folder with --engine-dir"
            ) from error
        if not stat.S_ISDIR(state.st_mode):
            raise EngineError(f"{self.folder}: a link or file, not a folder; choose another with --engine-dir")
        _check_private(self.folder, state)
        return True


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/mask2surface/engines`, the first part `~/.cache` where that is not set."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The standard wants relative values ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "mask2surface" / "engines"


def _owned_bytes(path: Path, most: int) -> bytes | None:
    """At most `most` + 1 bytes of a regular file of this user; None when there is no such file.

    Checked and read through one handle, so that nothing can be put in its place in between.
    """
    try:
        handle = os.open(path, _READ)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = "a link" if path.is_symlink() else error.strerror or error
        raise EngineError(f"{path}: {reason}; {_REMEDY}") from error
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise EngineError(f"{path}: not a regular file; {_REMEDY}")
        _check_private(path, state)
        return _read(handle, most + 1)
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror or error}; {_REMEDY}") from error
    finally:
        os.close(handle)


def _read(handle: int, most: int) -> bytes:
    parts: list[bytes] = []
    while most > 0 and (part := os.read(handle, min(most, _AT_ONCE))):  # one call may give less than was asked for
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def _check_private(path: Path, state: os.stat_result) -> None:
    if not _KEPT_BY_OWNER:
        return
    if state.st_uid != os.getuid():
        raise EngineError(
            f"{path}: belongs to user {state.st_uid}, not to you; choose another folder with --engine-dir"
        )
    if state.st_mode & _OTHERS_WRITE:
        raise EngineError(
            f"{path}: others can write it (mode {stat.S_IMODE(state.st_mode):o}), and engines are native code; "
            "see who did, then `chmod -R go-w` it and build anew, or choose another folder with --engine-dir"
        )
