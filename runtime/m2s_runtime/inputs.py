"""From what was typed (files, folders, patterns) to a list of sources, each with a case id that is safe as a name."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from m2s_runtime.errors import NoInputs, UsageProblem
from m2s_runtime.nifti_files import header_of, split_suffix
from m2s_runtime.record import read_record
from m2s_runtime.text import clean

_ENTITY: Final = re.compile(r"(sub|ses)-[A-Za-z0-9+]+")
_DATATYPES: Final = frozenset(
    ("anat", "beh", "dwi", "eeg", "fmap", "func", "ieeg", "meg", "micr", "motion", "mrs", "nirs", "perf", "pet")
)
"""Folders of the Brain Imaging Data Structure (BIDS): one a subject, one a session, and below these one of a kind."""

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_RESERVED: Final = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|cases\.csv|studies\.csv|run(-.*)?\.json|report(-\d+)?\.html", re.IGNORECASE
)
_LONGEST: Final = 120


@dataclass(frozen=True)
class Source:
    """One input file, or pair of files.

    Attributes:
        path: where it is; of a `.hdr/.img` pair the header.
        relative: its name in reports, relative to the folder that was given.
        case: its case id, a plain name of `[A-Za-z0-9._-]`.
    """

    path: Path
    relative: str
    case: str


@dataclass(frozen=True)
class Problem:
    """A part of the input that holds nothing to run; `name` as typed, `message` with the remedy."""

    name: str
    message: str


@dataclass(frozen=True)
class Found:
    """What the inputs came to, in a fixed order."""

    sources: list[Source] = field(default_factory=list[Source])
    problems: list[Problem] = field(default_factory=list[Problem])


def discover(inputs: Sequence[str], out: Path) -> Found:
    """Find the NIfTI files under `inputs`, each once, sorted; nothing hidden and no output of a run is taken.

    Outputs are whatever lies under `out` when that is a folder inside the one given; else the files that the
    completion records in `out` list. A file that is named outright is taken wherever it lies and whatever its suffix,
    so that its refusal is on record.

    Raises:
        NoInputs: not one file.
        UsageProblem: two files would get the same case id.
    """
    found = Found()
    taken: set[Path] = set()
    own = _real(out)
    for name in inputs:
        if not name:
            raise UsageProblem("an input is empty (an unset variable?): name a file or folder")
        for hit, relative in _hits(name, own, found.problems):
            # Either file of a pair stands for both.
            path = header_of(hit)
            real = _real(path)
            if real not in taken:
                taken.add(real)
                relative = PurePosixPath(relative).with_name(path.name).as_posix()
                found.sources.append(Source(path, clean(relative), case_id(relative)))
    if not found.sources:
        raise NoInputs("; ".join(f"{p.name}: {p.message}" for p in found.problems))
    found.sources.sort(key=lambda source: source.relative)
    _refuse_collisions(found.sources)
    return found


def _hits(name: str, own: Path, problems: list[Problem]) -> list[tuple[Path, str]]:
    """What one argument stands for; what cannot be looked up is a problem of this argument alone."""
    try:
        hits = list(_expand(name, own, problems))
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        problems.append(Problem(clean(name), f"cannot be looked up ({clean(str(reason))}); check name and permissions"))
        return []
    if not hits:
        problems.append(Problem(clean(name), _nothing(name)))
    return hits


def _real(path: Path) -> Path:
    """Without links; unlike `Path.resolve` it stands links that lead in a circle."""
    return Path(os.path.realpath(path))


def case_id(relative: str) -> str:
    """A relative path as one safe name: `sub-01/ed.nii.gz` becomes `sub-01_ed`.

    Folders that only repeat what a BIDS name says anyway are left out: `sub-01/ses-2/anat/sub-01_ses-2_bold.nii.gz`
    becomes `sub-01_ses-2_bold`. Everything outside `[A-Za-z0-9._-]` becomes `_`; names that some system reserves, and
    this program's own file names, get the prefix `case_`; long names and those in other scripts end in a digest of the
    whole, or they would be alike.
    """
    stem = _without_repeats(split_suffix(relative)[0])
    name = _UNSAFE.sub("_", stem).lstrip(".-").rstrip(".") or "case"
    if name.lower().endswith(".pvd"):  # the series of a cine
        name += "_"
    if _RESERVED.fullmatch(name):
        name = f"case_{name}"
    if len(name) > _LONGEST or not stem.isascii():
        digest = hashlib.sha256(relative.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        name = f"{name[:_LONGEST]}-{digest}"
    return name


def _without_repeats(stem: str) -> str:
    """Without the folders of a BIDS tree that the file's own name repeats, and those of a kind of data among them."""
    *folders, name = stem.split("/")
    entities = {part for part in name.split("_") if _ENTITY.fullmatch(part)}
    kept = [folder for folder in folders if folder not in entities]
    if entities and len(kept) < len(folders):
        kept = [folder for folder in kept if folder not in _DATATYPES]
    return "/".join([*kept, name])


def _above_entities(folder: Path) -> Path:
    """The nearest folder from which a relative path shows subject and session: `data` for `data/sub-01/ses-1/anat`."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - links are part of the name that the user gave
    below = folder.parent if folder.name in _DATATYPES else folder
    if not _ENTITY.fullmatch(below.name):
        return folder
    while _ENTITY.fullmatch(below.name):
        below = below.parent
    return below


def _named_from(root: Path, relative: str) -> str:
    """A path relative to `root`, preceded by the subject and session that `root` lies in."""
    folder = Path(os.path.abspath(root))  # noqa: PTH100
    return (folder.relative_to(_above_entities(root)) / relative).as_posix()


def _expand(name: str, own: Path, problems: list[Problem]) -> Iterator[tuple[Path, str]]:
    """The files that one argument stands for, with their names relative to it; `own` is the output folder."""
    path = Path(name)
    if path.is_dir():
        root, hits = path, _walk(path, path, problems)
    elif os.path.lexists(path):
        yield path, _named_from(path.parent, path.name)
        return
    elif glob.has_magic(name):
        root = _fixed_part(path)
        hits = _matches(path, root, problems)
    else:
        return
    base = _real(root)
    yield from ((hit, _named_from(root, relative)) for hit, relative in hits if not _is_output(hit, base, own))


def _matches(pattern: Path, root: Path, problems: list[Problem]) -> Iterator[tuple[Path, str]]:
    for entry in sorted(root.glob(pattern.relative_to(root).as_posix())):
        relative = entry.relative_to(root)
        if any(part.startswith(".") for part in relative.parts):
            continue
        if entry.is_dir():
            yield from _walk(entry, root, problems)
        elif _is_nifti(entry.name):
            yield entry, relative.as_posix()


def _is_output(path: Path, root: Path, own: Path) -> bool:
    """Whether a file found below `root` was made by a run into `own` (both resolved)."""
    folder = _real(path.parent)
    if own != root and own.is_relative_to(root):
        return folder.is_relative_to(own)
    # Input and output share a folder: only the records tell them apart.
    record = read_record(folder / f"{folder.name}.json") if folder.parent == own else None
    return record is not None and path.name in record.outputs


def _walk(folder: Path, root: Path, problems: list[Problem]) -> Iterator[tuple[Path, str]]:
    def unreadable(error: OSError) -> None:
        name = clean(Path(str(error.filename)).relative_to(root).as_posix())
        problems.append(Problem(name, f"folder {name} cannot be listed ({error.strerror}); check its permissions"))

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        for entry in sorted(files):
            if _is_nifti(entry) and not entry.startswith("."):
                path = Path(parent, entry)
                yield path, path.relative_to(root).as_posix()


def _is_nifti(name: str) -> bool:
    return bool(split_suffix(name)[1])


def _fixed_part(pattern: Path) -> Path:
    """The leading folders of a pattern that hold no wildcard."""
    parts: list[str] = []
    for part in pattern.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)


def _nothing(name: str) -> str:
    if Path(name).is_dir():
        return (
            "no .nii, .nii.gz or .hdr/.img file in this folder (outputs of a run aside); give the folder that holds the"
            " label maps"
        )
    if glob.has_magic(name):
        return "no .nii, .nii.gz or .hdr/.img file matches this pattern; check it, or give a folder"
    return "no such file or folder; check the spelling"


def _refuse_collisions(sources: Sequence[Source]) -> None:
    """Case ids must differ by more than upper and lower case, which some file systems do not tell apart."""
    owner: dict[str, Source] = {}
    for source in sources:
        other = owner.setdefault(source.case.casefold(), source)
        if other is not source:
            apart = other.path.parent != source.path.parent
            remedy = "give the folder above them (or the pattern in quotes)" if apart else "rename one of them"
            raise UsageProblem(
                f"{clean(str(other.path))} and {clean(str(source.path))} would both be case {source.case!r}; {remedy},"
                " or run them into two --out folders"
            )
