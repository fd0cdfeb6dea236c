"""What a user may ask of `m2s-run`, free of heavy imports so that `--help` stays instant."""

import hashlib
import json
from dataclasses import dataclass
from typing import Final, Literal

Space = Literal["lps", "ras"]

FORMATS: Final = ("ply", "stl", "vtp", "obj", "glb")
"""Mesh file formats, by extension."""

SPREAD_FORMATS: Final = ("ply", "vtp")
"""Those of them that can hold a number for each vertex."""

SPACES: Final[tuple[Space, ...]] = ("lps", "ras")
"""World axes of mesh files: DICOM's (left, posterior, superior) or NIfTI's (right, anterior, superior)."""

SAVES: Final = ("mask", "sdg", "shifts")
"""Intermediate results that can be kept beside the mesh."""

MOST_SAMPLES: Final = 64
"""They run as one batch, which has to fit the memory."""


@dataclass(frozen=True)
class Options:
    """The choices that decide which cases run and what is written for each.

    Attributes:
        labels: label scheme, see `m2s_runtime.labels`.
        frames: frames of a cine, see `m2s_runtime.frames`.
        formats: mesh formats out of `FORMATS`; the first is the one printed.
        space: world axes of the mesh files.
        save: intermediate results to keep, out of `SAVES`.
        steps: denoising steps; None means the bundle's own number.
        seed: seed of the noise.
        overwrite: redo cases that are complete.
        samples: posterior samples whose mean is the surface.
        refine: how often at most the slices are re-registered to the reconstruction.
    """

    labels: str = "auto"
    frames: str = "all"
    formats: tuple[str, ...] = ("ply",)
    space: Space = "lps"
    save: tuple[str, ...] = ()
    steps: int | None = None
    seed: int = 0
    overwrite: bool = False
    samples: int = 1
    refine: int = 0

    def fingerprint(self, **bound: str | int) -> str:
        """Sha256 of everything here that can change a case's files, plus `bound`.

        What `bound` should hold: engine and its version, device, threads, distance kernel, version of this program.

        `frames` is left out because it only chooses among cases, `overwrite` because it only chooses when.
        """
        parts: dict[str, object] = {
            "labels": self.labels,
            "formats": sorted(self.formats),
            "space": self.space,
            "save": sorted(self.save),
            "steps": self.steps,
            "seed": self.seed,
            "samples": self.samples,
            "refine": self.refine,
            **bound,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
