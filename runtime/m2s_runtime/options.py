"""What a user may ask of `m2s-run`, free of heavy imports so that `--help` stays instant."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from m2s_runtime.errors import UsageProblem
from m2s_runtime.limits import Limits

Space = Literal["lps", "ras"]

FORMATS: Final = ("ply", "stl", "vtp", "obj", "glb")
"""Mesh file formats, by extension."""

SPREAD_FORMATS: Final = ("ply", "vtp")
"""Those of them that can hold a number for each vertex."""

ENGINES: Final = ("auto", "onnx", "openvino", "trt")
"""Inference engines; `auto` is the fastest that is installed, proven on the bundle and fits the device."""

PRECISIONS: Final = ("auto", "float32", "float16", "bfloat16")
"""Arithmetic of the networks; not every engine has each."""

QUALITIES: Final = ("exact", "fast")
"""Ways to sample: ten denoising steps as in the paper, or the bundle's own choice of fewer."""

SPACES: Final[tuple[Space, ...]] = ("lps", "ras")
"""World axes of mesh files: DICOM's (left, posterior, superior) or NIfTI's (right, anterior, superior)."""

SAVES: Final = ("mask", "overlay", "sdg", "shifts")
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
        steps: denoising steps; None means those of `quality`, and without it the bundle's own number.
        quality: out of `QUALITIES`, or None.
        exact: whether distances are exact even where the native kernel is missing; the fingerprint has the kernel.
        seed: seed of the noise.
        overwrite: redo cases that are complete.
        samples: posterior samples whose mean is the surface.
        refine: how often at most the slices are re-registered to the reconstruction.
        base_limit: mm that the wall may reach beyond its most basal slice; None leaves that to the networks.
        limits: how large an input may be.
        share_shifts: whether all frames of a cine are given the same slice shifts.
        anonymise: whether inputs are named by a digest, see `m2s_runtime.anonymise`.
        report: whether each case gets the file that the report shows it from, and the run its report.
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
    limits: Limits = field(default_factory=Limits)
    share_shifts: bool = True
    anonymise: bool = False
    report: bool = True
    quality: str | None = None
    exact: bool = False
    base_limit: float | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageProblem: `quality` beside `steps`, a fast one of several samples, or a `base_limit` that is negative
                or not finite.
        """
        if self.quality and self.steps:
            raise UsageProblem("--quality and --steps contradict each other: both say how many steps to take")
        if self.quality == "fast" and self.samples > 1:
            raise UsageProblem(
                "--quality fast gives the mean of the posterior, of which --samples would be copies: leave one away"
            )
        if self.base_limit is not None and not 0 <= self.base_limit < math.inf:
            raise UsageProblem(
                f"--base-limit {self.base_limit:g}: give a finite number of mm from 0 on, or leave it away"
            )

    def fingerprint(self, **bound: str | float) -> str:
        """Sha256 of everything here that can change a case's files, plus `bound`.

        What `bound` should hold: engine and its version, device, threads, distance kernel, version of this program,
        and `steps` and `temperature` as resolved, whatever option they come from.

        `frames` and `limits` are left out because they only choose among cases, `overwrite` because it only chooses
        when, `report` because a case without its picture is no reason to do it again.
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
            "base_limit": self.base_limit,
            "share_shifts": self.share_shifts,
            "anonymise": self.anonymise,
            **bound,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Setup:
    """How and where a run is carried out.

    Attributes:
        model: bundle folder or name; None for the default bundle.
        engine: inference engine, see `m2s_runtime.engines`.
        precision: out of `PRECISIONS`.
        engine_dir: folder of built TensorRT engines; None for the user's cache.
        device: device, or several separated by commas.
        threads: cores for each process; 0 means one, whatever the machine, because the number can change a mesh.
        jobs: processes on the CPU; 0 does everything in the one that runs already; None means as many as there are
            cores, memory and cases for.
        batch_size: cases that a network computes at once; None for what suits the device.
        timeout: seconds a case may take, 0 for any number.
        cluster: the system that runs the processes, see `m2s_runtime.cluster`; None for this machine.
        shard: part of the run, see `m2s_runtime.shards`.
        retry_failed: do only what failed before.
        dry_run: only say what would happen.
        log_json: file that gets a JSON line for each event; None for no such file.
        verbosity: -1 shows failures only, 1 adds decisions, stage times and traces.
    """

    model: str | None = None
    engine: str = "auto"
    precision: str = "auto"
    engine_dir: Path | None = None
    device: str = "auto"
    threads: int = 0
    jobs: int | None = None
    batch_size: int | None = None
    timeout: float = 3600.0
    cluster: str | None = None
    shard: str = "1/1"
    retry_failed: bool = False
    dry_run: bool = False
    log_json: Path | None = None
    verbosity: int = 0
