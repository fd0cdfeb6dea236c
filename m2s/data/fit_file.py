"""A fitted template on disk: `<id>.npz` beside `quality.csv`, as `m2s-train prepare` writes them.

The arrays are `vertices` (V, 3) float32 mm in the frame of the mask (voxel i at i times 1 x 1 x 2 mm), `faces` (F, 3)
int32, `sdg` (128, 128, 64) float16 mm (the paper's SDG, negative inside), `mask` (128, 128, 60) bool, one bit a voxel
in C order, and `facts`, JSON text. The faces are the same in every file: vertex n lies at one place of all hearts.
"""

import csv
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from m2s.data.heart import Heart
from m2s.data.labelmaps import LabelMap, LabelMaps, Part, Phase
from m2s.data.quality import Quality
from m2s.data.sdg import signed_distance_grid
from m2s_runtime.atomic import write_bytes
from m2s_runtime.errors import NoInputs, UsageProblem
from m2s_runtime.grid import MASK_GRID, SPACING

TABLE: Final = "quality.csv"
_BROKEN: Final = (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Fit:
    """The template fitted to one heart.

    Attributes:
        heart: the mask and, as its surface, the fitted template.
        sdg: (128, 128, 64) float16 mm.
        quality: of the fit.
        key: hash of what the fit was made from and how: a file with the same key need not be made again.
        seconds: the fit took.
    """

    heart: Heart
    sdg: npt.NDArray[np.float16]
    quality: Quality
    key: str
    seconds: float


def make_fit(heart: Heart, quality: Quality, key: str, seconds: float) -> Fit:
    """A fit with its signed distances."""
    sdg = signed_distance_grid(heart.grid_vertices, heart.faces).astype(np.float16)
    return Fit(heart, sdg, quality, key, seconds)


def fit_path(folder: Path, identity: str) -> Path:
    """Where the fit of a heart is kept."""
    return folder / f"{identity}.npz"


def write_fit(folder: Path, fit: Fit) -> None:
    """Put a fit into the folder in one step.

    Raises:
        OutputError: the folder cannot be written.
    """
    facts = {"id": fit.heart.id, "key": fit.key, "seconds": fit.seconds, "quality": asdict(fit.quality)}
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        vertices=fit.heart.vertices.astype(np.float32),
        faces=fit.heart.faces,
        sdg=fit.sdg,
        mask=np.packbits(fit.heart.mask),
        facts=np.array(json.dumps(facts)),
    )
    write_bytes(fit_path(folder, fit.heart.id), buffer.getvalue())


def read_fit(folder: Path, identity: str) -> Fit:
    """The inverse of `write_fit`.

    Raises:
        UsageProblem: there is no such file, or it is damaged.
    """
    path = fit_path(folder, identity)
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            mask = np.unpackbits(stored["mask"], count=int(np.prod(MASK_GRID))).astype(np.bool_).reshape(MASK_GRID)
            vertices = stored["vertices"].astype(np.float64)
            heart = Heart(facts["id"], mask, vertices, stored["faces"], SPACING[2])
            return Fit(heart, stored["sdg"], Quality(**facts["quality"]), facts["key"], facts["seconds"])
    except _BROKEN as error:
        raise UsageProblem(f"{path}: no fit can be read ({error}); run m2s-train prepare again") from error


def prepared_heart(folder: str, label_map: LabelMap) -> Heart:
    """A label map's heart with the fitted template as its surface.

    Raises:
        UsageProblem: no fit, a damaged one, or one of another mask.
    """
    heart = read_fit(Path(folder), label_map.id).heart
    if not np.array_equal(heart.mask, label_map.mask):
        raise UsageProblem(f"{fit_path(Path(folder), heart.id)}: fitted to another map; run m2s-train prepare again")
    return heart


@cache
def prepared_cases(folder: str, label_maps: str, name: Part) -> tuple[tuple[int, Phase], ...]:
    """Subject and phase of the maps of one part of the split whose fit may be trained on.

    Raises:
        NoInputs: `folder` has no `quality.csv`.
    """
    table = Path(folder) / TABLE
    if not table.is_file():
        raise NoInputs(f"{table}: not there; make it by m2s-train prepare --label-maps {label_maps} --out {folder}")
    with table.open(newline="", encoding="utf-8") as file:
        usable = {(row["subject"], row["phase"]) for row in csv.DictReader(file) if row["usable"] == "yes"}
    return tuple((s, p) for s, p in LabelMaps(label_maps).cases(name) if (str(s), p) in usable)
