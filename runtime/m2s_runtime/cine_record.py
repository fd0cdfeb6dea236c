"""Which cases a cine came to, put on record once all of them are done: to resume, nobody has to read it again.

`<out>/.cines/<case>.json` only saves time: what counts are the completion records of the frames.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from m2s_runtime import atomic, strict_json
from m2s_runtime.errors import OutputError
from m2s_runtime.inputs import Source
from m2s_runtime.journal import Journal
from m2s_runtime.nifti_files import digest_of
from m2s_runtime.record import Record, Seen, source_seen

_FOLDER: Final = ".cines"


@dataclass(frozen=True)
class CineRecord:
    """What is known of a cine whose frames are all complete.

    Attributes:
        schema: of this file.
        frames: the request, as typed.
        input: sha256 (hex).
        seen: `journal.source_seen` of the input before it was read.
        cases: case ids of its frames.
        series: size and time of the `.pvd` file; empty when there is none.
    """

    schema: Literal[1]
    frames: str
    input: str
    seen: Seen
    cases: tuple[str, ...]
    series: Seen


def remember(journal: Journal, source: Source, frames: str, sha256: str, seen: Seen, cases: list[str]) -> None:
    """Put a cine on record.

    Raises:
        OutputError: the disk is full or not writable.
    """
    folder = journal.out / _FOLDER
    try:
        if folder.is_symlink():
            folder.unlink()
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from error
    record = CineRecord(1, frames, sha256, seen, tuple(cases), _looks(journal, source))
    atomic.write_text(folder / f"{source.case}.json", strict_json.dumps(record))


def recall(journal: Journal, source: Source, frames: str) -> list[Record] | None:
    """The records of all frames of a cine, if they were asked for in the same words and every one is complete."""
    try:
        cine = strict_json.loads(CineRecord, (journal.out / _FOLDER / f"{source.case}.json").read_bytes())
    except (OSError, strict_json.Misfit):
        return None
    if cine.frames != frames or cine.series != _looks(journal, source):
        return None
    sha256 = cine.input if cine.seen == source_seen(source.path) else digest_of(source.path)
    if sha256 != cine.input:
        return None
    found = [record for case in cine.cases if (record := journal.complete(case, source.path, sha256))]
    return found if len(found) == len(cine.cases) else None


def series_path(journal: Journal, source: Source) -> Path:
    """Where the frames of a cine are tied together for ParaView."""
    return journal.out / f"{source.case}.pvd"


def _looks(journal: Journal, source: Source) -> Seen:
    try:
        seen = series_path(journal, source).lstat()
    except OSError:
        return ()
    return (seen.st_size, seen.st_mtime_ns)
