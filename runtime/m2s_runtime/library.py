"""Mask2Surface from Python: `Reconstructor("models/compact").run(mask, affine)`."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from operator import index
from pathlib import Path
from threading import Lock
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Self, SupportsIndex, cast

import numpy as np
import numpy.typing as npt

from m2s_runtime import atomic
from m2s_runtime.errors import UsageProblem
from m2s_runtime.frames import FrameRequest
from m2s_runtime.given import Given, Mask, file_key, given
from m2s_runtime.labels import LabelDecision, check_scheme, right_mask, wall_mask
from m2s_runtime.limits import Limits
from m2s_runtime.measurements import Measured, Measurements, measure
from m2s_runtime.mesh_files import encode
from m2s_runtime.options import MOST_SAMPLES, QUALITIES, Options, Space
from m2s_runtime.placement import Affine, slice_axis
from m2s_runtime.result import Floats, Reconstruction
from m2s_runtime.shifts_file import Origin, SliceShifts, slice_shifts
from m2s_runtime.stacks import Stacks
from m2s_runtime.surface import Mesh
from m2s_runtime.task import TaskSpec, open_reconstructor

if TYPE_CHECKING:
    from trimesh import Trimesh

    from m2s_runtime.batch import Reconstructs

__all__ = ["Reconstructor", "Result", "file_key"]


@dataclass(frozen=True, eq=False)
class Result:
    """One surface and what is known of it.

    Attributes:
        reconstruction: all that the pipeline found, see `result.Reconstruction`.
        measured: all that was measured on it.
        slices: where each slice of the source belongs: what `--save shifts` writes.
        labels: what was taken for the wall, and why.
        flags: what deserves a look, as in `cases.csv`.
        warnings: what was odd about the input.
        frame: of a cine, from 0; None for a single volume.
        seconds: time of each stage.
    """

    reconstruction: Reconstruction
    measured: Measured
    slices: SliceShifts
    labels: LabelDecision
    flags: tuple[str, ...]
    warnings: tuple[str, ...]
    frame: int | None
    seconds: dict[str, float]

    @property
    def mesh(self) -> Mesh:
        """Closed surface: vertices (V, 3) float64 world mm (RAS), faces (F, 3) int32, outward winding."""
        return self.reconstruction.mesh

    @property
    def shifts(self) -> npt.NDArray[np.float64]:
        """(S, 3) mm along right, anterior, superior: how far each slice of the source has to move; NaN: not used."""
        return self.slices.moves

    @property
    def measurements(self) -> Measurements:
        """The clinical numbers; None where one is withheld, and `withheld` says why."""
        return self.measured.measurements

    @property
    def spread(self) -> Floats | None:
        """(V,) float32 mm, how far the posterior samples lie apart at each vertex; None with a single sample."""
        return self.reconstruction.spread

    @property
    def expected_dice(self) -> float | None:
        """Dice that stacks like this one were reconstructed with when it was tried; None where that cannot be told."""
        return self.reconstruction.expected_dice

    @property
    def sdg(self) -> Floats:
        """(128, 128, 64) float32 mm, signed distances on the 1 x 1 x 2 mm grid, negative inside the wall."""
        return self.reconstruction.sdg

    @property
    def affine(self) -> Affine:
        """(4, 4) voxel index of `sdg` to world mm (RAS)."""
        return self.reconstruction.affine

    def save(self, path: str | os.PathLike[str], space: Space = "lps") -> Path:
        """Write the mesh as `m2s-run` would: whole or not at all, in the format that the suffix names.

        Args:
            path: ends in `.ply`, `.stl`, `.vtp`, `.obj` or `.glb`; a file that is there is replaced.
            space: world axes of the file.

        Raises:
            UsageProblem: no such format or space.
            OutputError: the folder is missing, full or not writable.
        """
        path = Path(path)
        if space not in ("lps", "ras"):
            raise UsageProblem(f"space={space!r}: choose lps or ras")
        kind = path.suffix.lower().lstrip(".")
        atomic.write_bytes(path, encode(self.mesh, kind, space, self.spread, self.measured.wall_thickness))
        return path

    def to_trimesh(self) -> "Trimesh":
        """The mesh for trimesh, world mm (RAS); `vertex_attributes` holds `spread_mm` and `thickness_mm` if known."""
        from trimesh import Trimesh

        known = {"spread_mm": self.spread, "thickness_mm": self.measured.wall_thickness}
        attributes: dict[str, npt.ArrayLike] = {name: values for name, values in known.items() if values is not None}
        return Trimesh(self.mesh.vertices, self.mesh.faces, process=False, vertex_attributes=attributes)


class Reconstructor:
    """Networks loaded once, for any number of masks; options have the names and meanings of those of `m2s-run`.

    Spawns no process. Threads may share one: their calls take turns. Processes may not: make one in each, after they
    have started. As a context manager it lets the networks go at the end.

    Attributes:
        description: what was bound: engine, version, precision, device, threads.
    """

    def __init__(
        self, model: str | os.PathLike[str] | None = None, *, engine: str = "auto", device: str = "auto",
        precision: str = "auto", engine_dir: str | os.PathLike[str] | None = None, threads: int = 0,
        labels: str = "auto", steps: int | None = None, quality: str | None = None, exact: bool = False, seed: int = 0,
        samples: int = 1, refine: int = 0, base_limit: float | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:  # fmt: skip
        """Load a bundle and bind an engine.

        Args:
            model: bundle folder or name; None means M2S_HOME, then the installed one.
            engine: `auto`, `onnx`, `openvino` or `trt`; one asked for by name is never replaced.
            device: `auto`, `cpu` or `cuda:N`.
            precision: arithmetic of the networks, see `options.PRECISIONS`.
            engine_dir: folder of built TensorRT engines; None for the user's cache.
            threads: cores; 0 means one, whatever the machine, because their number can change the last digits.
            labels: what the label values mean, see `labels.wall_mask`.
            steps: denoising steps; None means those of `quality`, and without it the bundle's own number.
            quality: `exact` or `fast`, see `options.QUALITIES`; None for the bundle's choice.
            exact: exact distances even where the compiled kernel could not be built.
            seed: of the noise.
            samples: posterior samples whose mean is the surface.
            refine: how often at most the slices are re-registered to the reconstruction.
            base_limit: mm that the wall may reach beyond its most basal slice; None leaves that to the networks.
            limits: how large a file may be.

        Raises:
            UsageProblem: an option that cannot mean anything.
            BundleError: the bundle is missing or altered.
            EngineError: the engine or device cannot be had.
        """
        check_scheme(str(labels))
        _check_counts(steps=steps, samples=samples, seed=seed, refine=refine, threads=threads)
        if quality not in (None, *QUALITIES):
            raise UsageProblem(f"quality={quality!r}: choose {' or '.join(QUALITIES)}")
        options = Options(
            labels=labels,
            steps=steps,
            quality=quality,
            exact=exact,
            seed=seed,
            samples=samples,
            refine=refine,
            base_limit=None if base_limit is None else _millimetres(base_limit),
        )
        spec = TaskSpec(
            Path(), options, (), None if model is None else os.fspath(model), engine, device, threads or 1,
            precision=precision, engine_dir=None if engine_dir is None else Path(engine_dir), batch_size=1,
        )  # fmt: skip
        self._labels, self._limits, self._turn = labels, limits, Lock()
        bundle, bound, pipeline = open_reconstructor(spec)
        self._name, self.description = bundle.name, bound.description
        self._pipeline: Reconstructs | None = pipeline

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the networks go."""
        self.close()

    def __repr__(self) -> str:
        return f"Reconstructor({self._name!r}, {'closed' if self._pipeline is None else self.description})"

    def close(self) -> None:
        """Let the networks go; a second time does nothing."""
        with self._turn:
            self._pipeline = None

    def run(self, mask: Mask, affine: npt.ArrayLike | None = None, *, key: str | None = None) -> Result:
        """Reconstruct one stack.

        A file gives the vertices that `m2s-run` gives at the same options and threads, bit for bit. Arrays and images
        do too with `key=file_key(path)`; where nothing is drawn (one sample of a bundle of temperature 0, such as the
        one that is installed), with any key.

        Args:
            mask: label map: a NIfTI file; a nibabel image; or an array (X, Y, Z) of integers, booleans or whole floats,
                with `affine`.
            affine: (4, 4) voxel index to world mm (RAS), for an array only.
            key: sha256 (hex) that the noise is drawn by; None means that of the file's bytes, or of the labels of an
                array or image whatever type holds them (`given.array_key`).

        Raises:
            UsageProblem: an array without affine, an affine beside a file or image, a bad key, or closed before.
            CaseError: a mask that cannot be used; the subclass says why, the message what to do.
            NotFinite: a network returned NaN or infinity.
        """
        started = perf_counter()
        source = given(mask, affine, key, self._limits)
        source.check_single()
        (result,) = self._results(source, FrameRequest(indices=(0,)), started, share_shifts=False)
        return result

    def cine(
        self, mask: Mask, affine: npt.ArrayLike | None = None, *, frames: str = "all", share_shifts: bool = True,
        key: str | None = None,
    ) -> Iterator[Result]:  # fmt: skip
        """Reconstruct the frames of a cine, one after the other as they are asked for.

        Args:
            mask: as in `run`, with time as fourth axis.
            affine: as in `run`.
            frames: `all`, `ed,es`, or indices such as `0,5,10-14`.
            share_shifts: give all frames the same slice shifts, a slice being one breath-hold.
            key: as in `run`; the frames share it.

        Raises:
            UsageProblem: as of `run`, or frames that cannot be.
            CaseError: as of `run`; the frames before the bad one have been given by then.
        """
        started = perf_counter()
        request = FrameRequest.parse(str(frames))
        return self._results(given(mask, affine, key, self._limits), request, started, share_shifts=share_shifts)

    def _results(self, source: Given, request: FrameRequest, started: float, *, share_shifts: bool) -> Iterator[Result]:
        wall, decision = wall_mask(source.labels, self._labels, slice_axis(source.affine))
        estimate = self._open().estimate if share_shifts else None
        stacks = Stacks(wall, source.affine, source.key, estimate, right_mask(source.labels, decision))
        for frame in request.choose(stacks.holds_wall(), stacks.volumes):
            yield self._one(source, decision, stacks, frame, started)
            started = perf_counter()

    def _one(self, source: Given, decision: LabelDecision, stacks: Stacks, frame: int, started: float) -> Result:
        canonical = stacks.canonical(frame)
        with self._turn:
            pipeline = self._open()
            shared = stacks.shared(frame)
            reading = perf_counter() - started
            found = pipeline.reconstruct(canonical, source.key, shared)
        begun = perf_counter()
        measured = measure(canonical, found)
        x, y, z, count = source.labels.shape
        number = frame if count > 1 else None
        origin = Origin(source.name, source.key, number, (x, y, z), source.affine)
        shifts = slice_shifts(found.shifts - found.common_shift, canonical, origin)
        flags = tuple(dict.fromkeys((*decision.flags, *canonical.flags, *found.flags)))
        seconds = {"read": reading, **found.seconds, "measure": perf_counter() - begun}
        warnings = (*source.warnings, *decision.warnings)
        return Result(found, measured, shifts, decision, flags, warnings, number, seconds)

    def _open(self) -> "Reconstructs":
        if self._pipeline is None:
            raise UsageProblem("this Reconstructor is closed: make another, or use it inside its with block")
        return self._pipeline


def _millimetres(limit: object) -> float:
    with suppress(OverflowError):
        if type(limit) is not bool and isinstance(limit, Real):
            return float(limit)
    raise UsageProblem(f"base_limit={limit!r}: give a number of mm, or None for no limit")


def _check_counts(**given: object) -> None:
    """What the command line refuses by itself."""
    ranges = {
        "steps": (1, 1000),
        "samples": (1, MOST_SAMPLES),
        "seed": (0, None),
        "refine": (0, 20),
        "threads": (0, None),
    }
    for name, value in given.items():
        low, high = ranges[name]
        if value is None and name == "steps":
            continue
        try:
            whole = index(cast("SupportsIndex", value))
        except TypeError:
            whole = low - 1
        if whole < low or (high is not None and whole > high):
            raise UsageProblem(f"{name}={value}: give a whole number from {low}" + (f" to {high}" if high else ""))
