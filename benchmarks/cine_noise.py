"""How steadily does the surface of a cine move, with noise and slice shifts of each frame's own or shared by all?

    python benchmarks/cine_noise.py --atlas DATA/cap_mesa_lv_pca --hearts 3 --frames 8 --steps 10

End-diastole and end-systole of validation people are blended over a cycle, apex held, and sliced every 10 mm; each
slice is moved by one shift in all frames, as one breath-hold would. The truth moves smoothly and its vertices
correspond, so what the reconstruction's error changes by from frame to frame is its own unrest.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s.data.atlas import VALIDATION_ROWS, Atlas
from m2s.data.heart import keyed_rng
from m2s.data.sdg import voxelise
from m2s.data.simulate import PAPER, Shifts, simulate_stack
from m2s.data.wall_mesh import Refinement, Sheet, at_least, closed_wall, square_rim
from m2s.triangles import TriangleIndex
from m2s_runtime.bundle import load_bundle
from m2s_runtime.cine import by_source, by_stack, shared_shifts
from m2s_runtime.engines import open_engine
from m2s_runtime.grid import CENTRE, MASK_GRID, SLICES, SPACING, UPSAMPLING
from m2s_runtime.pipeline import Pipeline, Reconstruction
from m2s_runtime.placement import Canonical, canonicalise
from m2s_runtime.surface import Mesh

Floats = npt.NDArray[np.float64]

STEP = SPACING[2] * UPSAMPLING
AFFINE = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, STEP, SPACING[2] * (UPSAMPLING // 2)], [0, 0, 0, 1]], float)
"""From voxels of the simulated stack to millimetres of the mask grid it was cut from."""


@dataclass(frozen=True)
class Cine:
    """A beating heart and its scan.

    Attributes:
        truth: (T, V, 3) mm, vertices that correspond from frame to frame.
        frames: canonical stacks.
        shifts: (12, 2) mm by which the slices moved, the same in every frame.
    """

    truth: Floats
    frames: list[Canonical]
    shifts: Shifts


@dataclass(frozen=True)
class Still:
    """A law of motion that moves every stack alike."""

    shifts: Shifts

    def draw(self, rng: np.random.Generator, slices: int) -> Shifts:  # noqa: ARG002 - as `MotionLaw` has it
        """(slices, 2) mm."""
        return self.shifts[:slices].copy()


def make_cine(atlas: Atlas, row: int, count: int) -> Cine:
    """One person's heart over a cycle, scanned with the paper's motion."""
    (endo, epi), (endo_es, epi_es) = atlas.sheets(row, "ED"), atlas.sheets(row, "ES")
    lift = (epi.apex - epi_es.apex) * (0, 0, 1)
    walls = [
        _wall(_blend(endo, endo_es, lift, part), _blend(epi, epi_es, lift, part))
        for part in (1 - np.cos(2 * np.pi * np.arange(count) / count)) / 2
    ]
    faces = walls[0][1]
    middle = (walls[0][0].min(axis=0) + walls[0][0].max(axis=0)) / 2
    centre = np.array([CENTRE, CENTRE, (MASK_GRID[2] - 1) / 2 * SPACING[2]])
    truth = np.stack([vertices + centre - middle for vertices, _ in walls])
    rng = keyed_rng("cine", row)
    shifts = PAPER.draw(rng, SLICES)
    stacks = [simulate_stack(voxelise(v, faces, MASK_GRID, SPACING), rng, Still(shifts)) for v in truth]
    return Cine(truth, [canonicalise(stack.slices, AFFINE) for stack in stacks], shifts)


def _blend(one: Sheet, other: Sheet, lift: Floats, part: float) -> Sheet:
    return Sheet(
        one.points + part * (other.points + lift - one.points), one.apex + part * (other.apex + lift - one.apex)
    )


def _wall(endo: Sheet, epi: Sheet) -> tuple[Floats, npt.NDArray[np.int32]]:
    meridians, rings, _ = endo.points.shape
    refine = Refinement(meridians, rings, (3, 2))
    return closed_wall(refine(endo), refine(at_least(endo, square_rim(endo, epi), 2.5)))


def measure(cine: Cine, model: Pipeline, *, one_noise: bool, one_shift: bool) -> tuple[float, float, float]:
    """Unrest of the surface, its mean distance from the truth, and the error of the shifts, all mm."""
    keys = [hashlib.sha256(str(0 if one_noise else frame).encode()).hexdigest() for frame in range(len(cine.frames))]
    shared = _shared(cine, model, keys[0]) if one_shift else None
    results = [
        model.reconstruct(frame, key, None if shared is None else by_stack(shared, frame))
        for frame, key in zip(cine.frames, keys, strict=True)
    ]
    slips = np.stack(
        [
            by_source(r.shifts - r.common_shift, c, SLICES) - cine.shifts
            for r, c in zip(results, cine.frames, strict=True)
        ]
    )
    # Where the heart as a whole lay is lost in the motion: one translation for the whole cine is forgiven.
    apart = np.array([*np.nanmean(slips, axis=(0, 1)), 0.0])
    error = np.stack([_signed_error(r, truth - apart) for r, truth in zip(results, cine.truth, strict=True)])
    unrest = float(abs(error - np.roll(error, 1, axis=0)).mean())
    left = slips - np.nanmean(slips, axis=1, keepdims=True)
    return unrest, float(abs(error).mean()), float(np.nanmean(abs(left)))


def _shared(cine: Cine, model: Pipeline, key: str) -> Floats:
    return shared_shifts([by_source(model.estimate(frame, key), frame, SLICES) for frame in cine.frames])


def _signed_error(result: Reconstruction, truth: Floats) -> Floats:
    """(V,) mm: how far each true vertex lies outside (positive) or inside the reconstructed surface."""
    mesh = Mesh(result.mesh.vertices, result.mesh.faces)
    inverse = np.linalg.inv(result.affine)
    where = (truth @ inverse[:3, :3].T + inverse[:3, 3]).T
    side = np.sign(ndimage.map_coordinates(result.sdg, where, np.float64, order=1, mode="nearest"))
    return side * TriangleIndex.of(mesh).distance(truth)


def table(cines: Sequence[Cine], model: Pipeline) -> Iterator[str]:
    """Markdown, a line for each way to share, means over the cines."""
    yield "| noise | slice shifts | unrest, mm a frame | distance from the truth, mm | error of the shifts, mm |"
    yield "|---|---|---|---|---|"
    for one_noise, one_shift in ((False, False), (True, False), (False, True), (True, True)):
        names = " | ".join("shared" if one else "own" for one in (one_noise, one_shift))
        numbers = np.mean([measure(c, model, one_noise=one_noise, one_shift=one_shift) for c in cines], axis=0)
        yield f"| {names} | {numbers[0]:.3f} | {numbers[1]:.3f} | {numbers[2]:.3f} |"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--atlas", required=True, type=click.Path(path_type=Path), help="Folder with PCA_ED.mat and PCA_ES.mat.")
@click.option("--model", help="Bundle folder or name.")
@click.option("--hearts", type=click.IntRange(1, len(VALIDATION_ROWS)), default=3, show_default=True)
@click.option("--frames", type=click.IntRange(2), default=8, show_default=True)
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps.  [default: the bundle's]")
@click.option("--refine", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(
    atlas: Path, model: str | None, hearts: int, frames: int, steps: int | None, refine: int, threads: int
) -> None:
    """Print the table."""
    bundle = load_bundle(model)
    engine = open_engine(bundle, engine="onnx", device="cpu", threads=threads)
    reconstructor = Pipeline(bundle, engine, steps=steps, threads=threads, refine=refine)
    shapes = Atlas(atlas)
    cines = [make_cine(shapes, row, frames) for row in VALIDATION_ROWS[:hearts]]
    for line in table(cines, reconstructor):
        click.echo(line)


if __name__ == "__main__":
    main()
