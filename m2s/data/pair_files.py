"""Clinical pairs read once and kept on the canonical grid, so that fine-tuning does not resample them at every step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from m2s.data.clinical import Pair, read_pair
from m2s.data.content import content_mark
from m2s.data.labelmaps import KINDS, LabelMaps, Part, Phase, case_file
from m2s.pool import worker_pool
from m2s_runtime.atomic import write_bytes
from m2s_runtime.errors import CaseError, NoInputs, UsageProblem
from m2s_runtime.grid import MASK_GRID, SLICES

_STACK: Final = (*MASK_GRID[:2], SLICES)


@dataclass(frozen=True)
class PairFiles:
    """Pairs of one part on the canonical grid, one file each, and what could not be used: name to reason."""

    files: tuple[Path, ...]
    refused: dict[str, str]


def prepare_pairs(folder: Path, data: Path, part: Part, workers: int = 1) -> PairFiles:
    """Reads the pairs of one part of the split into `folder`, where it has not done so yet.

    A pair that cannot be used is left out and named; files that miss their partner end it.

    Raises:
        NoInputs: no pair, a file without its partner, or no pair that can be used.
        UsageProblem: `folder` holds pairs of another data set.
    """
    cases = LabelMaps(data).pairs(part)
    folder.mkdir(parents=True, exist_ok=True)
    marker, origin = folder / "origin.txt", str(data.resolve())
    if marker.is_file() and marker.read_text() != origin:
        raise UsageProblem(f"{folder} holds pairs of {marker.read_text()}: remove it or choose another RUN")
    write_bytes(marker, origin.encode())
    files = [folder / f"{subject}-{phase}-{_mark(data, subject, phase)}.npy" for subject, phase in cases]
    missing = [(data, *case, file) for case, file in zip(cases, files, strict=True) if not file.is_file()]
    if missing:
        with worker_pool(workers) as pool:
            told = list(pool.map(_prepare, missing))
    else:
        told = []
    spoilt = {file: reason for (*_, file), reason in zip(missing, told, strict=True) if reason}
    refused = {file.stem.rpartition("-")[0]: reason for file, reason in spoilt.items()}
    kept = tuple(file for file in files if file not in spoilt)
    if not kept:
        raise NoInputs(
            f"{data}: none of {len(files)} {part} pairs can be used; the first: {next(iter(refused.values()))}"
        )
    return PairFiles(kept, refused)


def _mark(data: Path, subject: int, phase: Phase) -> str:
    """A file that was replaced since is read again."""
    return content_mark(*(case_file(data, subject, phase, kind) for kind in KINDS))


def _prepare(case: tuple[Path, int, Phase, Path]) -> str:
    """Why a pair cannot be used, or nothing."""
    data, subject, phase, file = case
    try:
        pair = read_pair(LabelMaps(data), subject, phase)
    except CaseError as error:
        return str(error)
    bits = np.packbits(np.concatenate([pair.slices.ravel(), pair.mask.ravel()]))
    write_bytes(file, bits.tobytes())
    return ""


def load_pair(file: Path) -> Pair:
    """The inverse of `prepare_pairs` for one pair."""
    bits = np.unpackbits(np.frombuffer(file.read_bytes(), np.uint8)).astype(np.bool_)
    cut = int(np.prod(_STACK))
    return Pair(file.stem.rpartition("-")[0], bits[:cut].reshape(_STACK), bits[cut:].reshape(MASK_GRID))
