"""Pictures of what goes wrong, for the model card: cuts of the surface against the truth or the slices.

    python benchmarks/known_failures.py DATA --row 1412 --dilated 1442 --acdc patient001_ED_gt --out known-failures.png

DATA holds the three data sets of `benchmarks/README.md`. `--row` and `--dilated` are validation rows of the atlas: one
drawn under the published motion (draw 0), one with walls that are outlined too thick. The first column is always the
second stack that came with subject 1081.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import matplotlib as mpl
import numpy as np
import numpy.typing as npt

from m2s.data.heart import keyed_rng
from m2s.data.simulate import draw_rng, simulate_stack
from m2s.evaluate.acdc import read_stack
from m2s.evaluate.degrade import SPOILERS
from m2s.evaluate.flags import true_mask
from m2s.evaluate.hearts import Cohort, base_heart
from m2s.evaluate.laws import motion_law
from m2s.evaluate.methods import canonical_of, spacing_of
from m2s.evaluate.simulation import noise_key
from m2s.evaluate.subject1081 import seat
from m2s.metrics import dice
from m2s_runtime.bundle import Bundle, load_bundle
from m2s_runtime.engines import open_engine
from m2s_runtime.grid import IN_PLANE, NOMINAL_STEP, PADDING, PLANES, SLICES, SPACING
from m2s_runtime.pipeline import Pipeline
from m2s_runtime.placement import Canonical, canonicalise

mpl.use("Agg")  # draws to files only: no display is needed
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HEIGHTS = np.arange(PLANES) * SPACING[2]
MIDDLE = SLICES // 2

Floats = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Failure:
    """One column: what went in, what came out (distances, (128, 128, 64) mm), and the truth (128, 128, 60) if known."""

    title: str
    stack: Canonical
    level: Floats
    flags: tuple[str, ...]
    truth: Masks | None

    @property
    def caption(self) -> str:
        """Dice, where there is a truth, and flags."""
        found = "" if self.truth is None else f"Dice {100 * dice(_inside(self.level), self.truth):.1f} %, "
        return found + (" ".join(self.flags) or "no flag")


Run = Callable[[Canonical, str], tuple[Floats, tuple[str, ...]]]


def runner(bundle: Bundle) -> Run:
    """The bundle's pipeline on the CPU: distances and flags of a stack."""
    pipeline = Pipeline(bundle, open_engine(bundle, "onnx", "cpu", 1))

    def run(stack: Canonical, name: str) -> tuple[Floats, tuple[str, ...]]:
        found = pipeline.reconstruct(stack, noise_key(name, 0, 0))
        return found.sdg, (*stack.flags, *found.flags)

    return run


def tilted(run: Run, folder: Path) -> Failure:
    """The second given stack of subject 1081: its slices have moved along a line, too."""
    truth = seat(read_stack(folder / "1081_ED_HR_flip_clean.nii.gz", "myo=2").wall, 0).mask
    given = read_stack(folder / "1081_ED_sim_motion_2.nii.gz", "myo=2")
    stack = canonicalise(given.wall, given.affine)
    return Failure("subject 1081, given stack 2:\nthe stack as a whole stays tilted", stack, *run(stack, "1081"), truth)


def shifted(run: Run, atlas: Path, row: int) -> Failure:
    """A validation heart whose slices are put where its neighbours make them likely, not where they were."""
    heart = base_heart(Cohort(atlas), row)
    moved = simulate_stack(heart.mask, draw_rng(heart.id, 0, 0), motion_law("paper", heart.mask))
    stack = canonical_of(moved.slices, spacing_of(NOMINAL_STEP))
    return Failure(f"atlas row {row}, simulated:\nslices stay displaced", stack, *run(stack, heart.id), heart.mask)


def thickened(run: Run, atlas: Path, row: int) -> Failure:
    """Walls that are outlined too thick: no mask tells."""
    heart = base_heart(Cohort(atlas), row)
    spoilt = SPOILERS["dilated"](heart, keyed_rng("spoilt", 0, heart.id, "dilated", 0))
    stack = canonicalise(spoilt.wall, spoilt.affine)
    level, flags = run(stack, heart.id)
    truth = true_mask(spoilt, heart.faces, stack.placement)
    apart = np.argwhere(_inside(level)).mean(axis=0) - np.argwhere(truth).mean(axis=0)
    x, y = np.round(apart[:2]).astype(int)
    title = f"atlas row {row}, outlined too thick:\nbelieved"
    return Failure(title, stack, level, flags, np.roll(truth, (x, y), (0, 1)))


def capped(run: Run, folder: Path, name: str) -> Failure:
    """A real heart whose cavity runs out of the wall at the apex."""
    acquired = read_stack(folder / f"{name}.nii.gz", "acdc")
    stack = canonicalise(acquired.wall, acquired.affine)
    return Failure(f"ACDC {name}:\ncavity open at the apex, capped", stack, *run(stack, name), None)


def _inside(level: Floats) -> Masks:
    return np.asarray(level[:, :, PADDING : PADDING + PLANES] < 0)


def height(stack: Canonical, s: int) -> float:
    """Of slice `s`, mm below the first plane of the grid; the middle of the twelve is that of the grid."""
    return float(HEIGHTS.mean() + (s - (SLICES - 1) / 2) * stack.placement.step_mm)


def slices_in(stack: Canonical, line: int) -> Iterator[tuple[float, npt.NDArray[np.intp]]]:
    """Height in mm of every slice and where it holds wall along x, at y = `line`."""
    for s in np.flatnonzero(stack.masks[:, line].any(axis=0)):
        yield height(stack, int(s)), np.flatnonzero(stack.masks[:, line, s])


def draw(failure: Failure, side: Axes, across: Axes) -> None:
    """A cut along the heart above, one across it below."""
    level = failure.level[:, :, PADDING : PADDING + PLANES]
    middle = round(float(np.argwhere(level < 0).mean(axis=0)[1]))
    lengths = np.arange(IN_PLANE) * SPACING[0]
    if failure.truth is not None:
        side.contourf(lengths, HEIGHTS, failure.truth[:, middle].T, [0.5, 1.5], colors=["0.8"])
    side.contour(lengths, HEIGHTS, level[:, middle].T, [0.0], colors=["#b03a2e"], linewidths=1.4)
    for at, wall in slices_in(failure.stack, middle):
        side.plot(wall, np.full(len(wall), at), ".", color="#1f4e8c", markersize=1.2)
    plane = round(height(failure.stack, MIDDLE) / SPACING[2])
    if failure.truth is not None:
        across.contourf(failure.truth[:, :, plane].T, [0.5, 1.5], colors=["0.8"])
    across.contour(level[:, :, plane].T, [0.0], colors=["#b03a2e"], linewidths=1.4)
    across.contour(failure.stack.masks[:, :, MIDDLE].T, [0.5], colors=["#1f4e8c"], linewidths=0.7)
    side.set(xlim=(18, 110), ylim=(HEIGHTS[-1], 0), aspect="equal")
    across.set(xlim=(18, 110), ylim=(110, 18), aspect="equal")
    side.set_title(failure.title, fontsize=8)
    across.set_title(failure.caption, fontsize=8, y=-0.12)
    for axes in (side, across):
        axes.set_xticks([])
        axes.set_yticks([])


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--row", type=int, required=True, help="Validation row of the atlas, simulated.")
@click.option("--dilated", type=int, required=True, help="Validation row of the atlas, outlined too thick.")
@click.option("--acdc", "name", required=True, help="Stack of ACDC, the name without .nii.gz.")
@click.option("--model", type=click.Path(path_type=Path), default=None, help="Bundle; the installed one.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("known-failures.png"))
def main(data: Path, row: int, dilated: int, name: str, model: Path | None, out: Path) -> None:
    """Draw four failures side by side: grey the truth, red the surface, blue the slices as given."""
    run, atlas = runner(load_bundle(model)), data / "cap_mesa_lv_pca"
    failures = (
        tilted(run, data / "cardiac_sr_label_maps"),
        shifted(run, atlas, row),
        thickened(run, atlas, dilated),
        capped(run, data / "acdc_masks", name),
    )
    figure = Figure(figsize=(2.6 * len(failures), 6.2), dpi=130, layout="constrained")
    grid = figure.subplots(2, len(failures))
    for failure, side, across in zip(failures, *grid, strict=True):
        draw(failure, side, across)
        click.echo(f"{failure.title!r}: {failure.caption}")
    figure.savefig(out)
    click.echo(out)


if __name__ == "__main__":
    main()
