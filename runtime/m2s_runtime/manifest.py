"""What `manifest.json` of a model bundle says; written by the exporter, read by the runtime, defined here once."""

import re
from dataclasses import dataclass, field
from typing import Final, Literal

from m2s_runtime import expected_dice, flags
from m2s_runtime.expected_dice import DiceModel
from m2s_runtime.grid import GRID, IN_PLANE, PADDING, PLANES, SLICES, SPACING
from m2s_runtime.shift_error import NO_ERROR, Deviations

SCHEMA: Final = 1
"""Version of this format; a reader accepts its own only."""

BATCH: Final = "batch"
"""Stands for the one dynamic axis, the leading one of every tensor."""

GRAPHS: Final = ("mc", "sr", "encode", "denoise", "decode")
"""The networks of a bundle in the order of the data flow; graph `mc` is the file `mc.onnx`."""

FLAVOURS: Final = ("float16",)
"""Precisions that a bundle may hold beside float32."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")

Shape = tuple[str | int, ...]


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: sha256 (64 lower-case hexadecimal digits) and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: its name, its shape with `batch` first, its dtype."""

    name: str
    shape: Shape
    dtype: Literal["float32", "int64"]


@dataclass(frozen=True)
class GraphSpec:
    """Signature of a graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Schedule:
    """Noise levels that the denoiser was trained on: betas linear from start to end."""

    kind: Literal["linear"]
    beta_start: float
    beta_end: float
    train_steps: int
    prediction: Literal["eps"]


@dataclass(frozen=True)
class GraphParity:
    """Largest deviation of a graph from its PyTorch module, over the batch sizes tried."""

    max_abs: float
    batches: tuple[int, ...]
    codes_agree: float | None


@dataclass(frozen=True)
class Parity:
    """What the exporter measured before it published: engine and versions, each graph, the surface end to end (mm)."""

    engine: str
    torch: str
    graphs: dict[str, GraphParity]
    surface_p95_mm: float | None
    surface_cases: int


@dataclass(frozen=True)
class BatchProfile:
    """Batch sizes that a TensorRT engine is built for: smallest, the one it is tuned to, largest."""

    min: int
    opt: int
    max: int


def default_profiles() -> dict[str, BatchProfile]:
    """One case at a time, and posterior samples or several cases together."""
    return {"one": BatchProfile(1, 1, 1), "many": BatchProfile(2, 4, 16)}


def profile_text(profiles: dict[str, BatchProfile]) -> str:
    """Profiles in one word, in the order that an engine numbers them: `one=1:1:1,many=2:4:16`."""
    return ",".join(f"{name}={p.min}:{p.opt}:{p.max}" for name, p in profiles.items())


@dataclass(frozen=True)
class Flavour:
    """The graphs in another precision, inputs and outputs float32 all the same.

    Attributes:
        files: graph to file, for the graphs that differ; the others are those of the bundle itself.
        parity: of the flavour, against the float32 modules; None where it has not passed.
    """

    files: dict[str, str]
    parity: Parity | None = None


@dataclass(frozen=True)
class Stage:
    """One training stage: optimiser steps, seed, wall-clock seconds."""

    steps: int
    seed: int
    seconds: float


@dataclass(frozen=True)
class NotedStage(Stage):
    """A stage of which there is more to say; a kind of its own, so that manifests without notes stay readable."""

    note: str


@dataclass(frozen=True)
class Training:
    """What the weights were learnt from, under which licence that is, and how."""

    data: str
    data_licence: str
    stages: dict[str, Stage | NotedStage]


@dataclass(frozen=True)
class Manifest:
    """A bundle in words and numbers.

    Attributes:
        schema: `SCHEMA`.
        name: of the bundle, for reports; the folder may be called otherwise.
        preset: row of the table of network sizes.
        licence: of the weights, as their publisher states it (an SPDX identifier, or "not stated").
        mask2surface: version of the package that wrote it.
        commit: git commit it was written at, or empty.
        files: every file beside the manifest, by its bare name.
        graphs: signatures, by the names in `GRAPHS`.
        grid: shape of signed distance grids.
        spacing: mm between their voxels.
        padding: planes added on either side of the super-resolved 60.
        slices: what the graphs `mc` and `sr` take: the binary wall, or its signed in-plane distance.
        clip_mm: largest absolute slice distance.
        step_range_mm: slice steps (least, most) seen in training.
        sdg_clamp_mm: distances beyond this are cut off inside the graphs.
        latent_shape: (D, X', Y', Z') of a latent.
        scale_factor: what `encode` multiplies and `decode` divides latents by.
        requantise: whether `decode` snaps latents to the codebook first.
        schedule: noise levels.
        steps: DDIM steps unless the user says otherwise.
        timestep_spacing: how these are spread over the levels.
        precision: arithmetic of the graphs.
        stored_weights: width of the weights on disk; widened without loss before they are used.
        parity: against PyTorch.
        training: provenance.
        temperature: factor on the noise that a single sample of `steps` steps starts from, 0 to 1; optional.
        sample_steps: DDIM steps of several samples, unless the user says otherwise; 0 means `steps`; optional.
        spread_scale: factor that makes the spread of samples cover what it should; optional.
        shift_error_mm: how wrong the shifts of `mc` are, for `shift_error.draw_shift_errors`; optional.
        csdg_share: weight of the C-SDG in the surface, see `blend.Blend`; optional.
        flag_limits: limits of flags that differ from `flags.LIMITS`, by the names there; optional.
        dice_model: what Dice to expect of a case; optional, without it none is told.
        profiles: batch sizes to build TensorRT engines for, by name; optional.
        flavours: the graphs in other precisions, `float16` only as yet; optional.
        proven: parity of other engines and precisions than that of `parity`, by `engine-precision` (such as
            `openvino-bfloat16`); what is not in here is used only when asked for by name; optional.
    """

    schema: int
    name: str
    preset: str
    licence: str
    mask2surface: str
    commit: str
    files: dict[str, FileEntry]
    graphs: dict[str, GraphSpec]
    grid: tuple[int, int, int]
    spacing: tuple[float, float, float]
    padding: int
    slices: Literal["mask", "signed_distance"]
    clip_mm: float
    step_range_mm: tuple[float, float]
    sdg_clamp_mm: float
    latent_shape: tuple[int, int, int, int]
    scale_factor: float
    requantise: Literal[False]
    schedule: Schedule
    steps: int
    timestep_spacing: Literal["linspace", "leading"]
    precision: Literal["float32"]
    stored_weights: Literal["float16", "float32"]
    parity: Parity
    training: Training
    temperature: float = 1.0
    sample_steps: int = 0
    spread_scale: float = 1.0
    shift_error_mm: Deviations = NO_ERROR
    csdg_share: float = 0.0
    flag_limits: dict[str, float] = field(default_factory=dict[str, float])
    dice_model: DiceModel | None = None
    profiles: dict[str, BatchProfile] = field(default_factory=default_profiles)
    flavours: dict[str, Flavour] = field(default_factory=dict[str, Flavour])
    proven: dict[str, Parity] = field(default_factory=dict[str, Parity])

    def graph_file(self, graph: str, precision: str = "float32") -> str:
        """Name of the file that holds `graph` in `precision`."""
        flavour = self.flavours.get(precision)
        return flavour.files.get(graph, f"{graph}.onnx") if flavour else f"{graph}.onnx"


def signatures(latent_shape: tuple[int, int, int, int], *, pool: bool) -> dict[str, GraphSpec]:
    """The graphs that this runtime can drive; `pool` tells whether `mc` also takes the pool features."""
    slices = _spec("slices", 1, IN_PLANE, IN_PLANE, SLICES)
    shifts = _spec("shifts", SLICES, 2)
    z, zc = _spec("z", *latent_shape), _spec("zc", *latent_shape)
    level = TensorSpec("t", (BATCH,), "int64")
    motion_inputs = (slices, _spec("pool", SLICES, 3)) if pool else (slices,)
    return {
        "mc": GraphSpec(motion_inputs, (shifts,)),
        "sr": GraphSpec((slices, shifts), (_spec("prob", 1, IN_PLANE, IN_PLANE, PLANES),)),
        "encode": GraphSpec((_spec("csdg", 1, *GRID),), (zc,)),
        "denoise": GraphSpec((z, zc, level), (_spec("eps", *latent_shape),)),
        "decode": GraphSpec((z,), (_spec("sdg", 1, *GRID),)),
    }


def faults(manifest: Manifest) -> list[str]:
    """Why this runtime cannot use a well-formed manifest; empty when it can."""
    ours = {"schema": SCHEMA, "grid": GRID, "spacing": SPACING, "padding": PADDING}
    found = [f"{k} is {getattr(manifest, k)}, not {v}" for k, v in ours.items() if getattr(manifest, k) != v]
    wanted = [signatures(manifest.latent_shape, pool=pool) for pool in (True, False)]
    if manifest.graphs not in wanted:
        wrong = sorted(
            {n for n in {*GRAPHS, *manifest.graphs} if all(manifest.graphs.get(n) != w.get(n) for w in wanted)}
        )
        found.append(f"signature of graph {', '.join(wrong)} is not the one that this version drives")
    found += [f"{name}.onnx is not listed" for name in GRAPHS if f"{name}.onnx" not in manifest.files]
    positive = ("clip_mm", "sdg_clamp_mm", "scale_factor", "steps", "spread_scale")
    found += [f"{k} is {getattr(manifest, k)}, not positive" for k in positive if getattr(manifest, k) <= 0]
    for name in ("steps", "sample_steps"):
        if getattr(manifest, name) > manifest.schedule.train_steps:
            found.append(f"{name} is {getattr(manifest, name)}, more than the {manifest.schedule.train_steps} trained")
    if manifest.sample_steps < 0:
        found.append(f"sample_steps is {manifest.sample_steps}, negative")
    if not 0 <= manifest.temperature <= 1:
        found.append(f"temperature is {manifest.temperature}, not between 0 and 1")
    if not 0 <= manifest.csdg_share <= 1:
        found.append(f"csdg_share is {manifest.csdg_share}, not between 0 and 1")
    if any(deviation < 0 for deviation in manifest.shift_error_mm):
        found.append(f"shift_error_mm is {manifest.shift_error_mm}, partly negative")
    found += _extra_faults(manifest)
    found += [f"flag_limits has no {n!r}, only {', '.join(flags.LIMITS)}" for n in flags.unknown(manifest.flag_limits)]
    found += expected_dice.faults(manifest.dice_model) if manifest.dice_model else []
    return found


def _extra_faults(manifest: Manifest) -> list[str]:
    """Of profiles and flavours."""
    found = [
        f"profile {name!r} is {p.min}, {p.opt}, {p.max}, not three growing batch sizes from 1 on"
        for name, p in manifest.profiles.items()
        if not (1 <= p.min <= p.opt <= p.max and _NAME.fullmatch(name))
    ]
    if not manifest.profiles:
        found.append("profiles are none")
    for name, flavour in manifest.flavours.items():
        if name not in FLAVOURS:
            found.append(f"flavour {name!r} is none of {', '.join(FLAVOURS)}")
        for graph, file in flavour.files.items():
            if graph not in GRAPHS or file not in manifest.files:
                found.append(f"flavour {name!r} names {graph!r} in {file!r}, which is not listed")
    return found


def _spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, (BATCH, *shape), "float32")
