"""What does it cost to have no compiled kernel? C-SDG to the nearest vertex against the exact one, heart by heart.

    python benchmarks/nearest_vertex.py --atlas DATA/cap_mesa_lv_pca --hearts 20
    python benchmarks/nearest_vertex.py --masks DATA/acdc_masks --hearts 20

The same stacks go through the whole method twice. Codes are those of the condition encoder; Dice with the truth is for
simulated stacks, of the atlas or procedural.
"""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from unittest import mock

import click
import numpy as np
import numpy.typing as npt

from m2s.data.atlas import validation_hearts
from m2s.data.phantom import phantom
from m2s.data.simulate import PAPER, draw_rng, simulate_stack
from m2s.evaluate.methods import canonical_from_stack
from m2s.metrics import dice
from m2s_export.surfaces import surface_p95
from m2s_runtime import mesh_distance
from m2s_runtime.bundle import load_bundle
from m2s_runtime.csdg import coarse_sdg
from m2s_runtime.engines import Engine, open_engine
from m2s_runtime.grid import PADDING
from m2s_runtime.labels import wall_mask
from m2s_runtime.pipeline import Pipeline, Reconstruction
from m2s_runtime.placement import Canonical, canonicalise, slice_axis
from m2s_runtime.volume import read_study

KEY = "0" * 64
Masks = npt.NDArray[np.bool_]


@dataclass
class Scores:
    """A number for each heart; the truth's Dice with exact distances and with those to vertices."""

    distance_mm: list[float] = field(default_factory=list[float])
    codes: list[float] = field(default_factory=list[float])
    dice: list[float] = field(default_factory=list[float])
    p95_mm: list[float] = field(default_factory=list[float])
    truth: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    cpu_seconds: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])


def stacks(atlas: Path | None, masks: Path | None, count: int) -> Iterator[tuple[Canonical, Masks | None]]:
    """Canonical stacks, and the truth where there is one."""
    for path in islice(sorted(masks.glob("*.nii.gz")), count) if masks else ():
        study = read_study(path)
        wall, _ = wall_mask(study.labels, "auto", slice_axis(study.affine))
        yield canonicalise(wall[..., 0], study.affine), None
    for heart in () if masks else islice(validation_hearts(atlas), count) if atlas else map(phantom, range(count)):
        yield canonical_from_stack(simulate_stack(heart.mask, draw_rng(heart.id, 0, 0), PAPER)), heart.mask


def measured(wall: Masks, kernel: str) -> tuple[npt.NDArray[np.float32], float]:
    """The C-SDG that a kernel gives, and the CPU seconds that it took."""
    with mock.patch.object(mesh_distance, "KERNEL", kernel):
        started = time.process_time()
        csdg = coarse_sdg(wall)
        return csdg, time.process_time() - started


def compare(scores: Scores, pipeline: Pipeline, engine: Engine, stack: Canonical, truth: Masks | None) -> None:
    """One heart both ways."""
    found: dict[str, Reconstruction] = {}
    for kernel in ("native", "scipy"):
        with mock.patch.object(mesh_distance, "KERNEL", kernel):
            found[kernel] = pipeline.reconstruct(stack, KEY)
    exact, near = found["native"], found["scipy"]
    (a, exact_seconds), (b, near_seconds) = (measured(exact.probability >= 0.5, k) for k in ("native", "scipy"))
    codes = [engine.run("encode", {"csdg": csdg[None, None]})["zc"] for csdg in (a, b)]
    scores.distance_mm.append(float(abs(a - b).max()))
    scores.codes.append(float((abs(codes[0] - codes[1]) < 1e-4).all(axis=1).mean()))
    scores.dice.append(dice(exact.sdg < 0, near.sdg < 0))
    scores.p95_mm.append(surface_p95(exact.mesh, near.mesh))
    scores.cpu_seconds.append((exact_seconds, near_seconds))
    if truth is not None:
        planes = slice(PADDING, -PADDING)
        scores.truth.append((dice(exact.sdg[..., planes] < 0, truth), dice(near.sdg[..., planes] < 0, truth)))


def table(scores: Scores) -> str:
    """Markdown."""
    truth = np.mean(scores.truth, axis=0) if scores.truth else (np.nan, np.nan)
    seconds = np.median(scores.cpu_seconds, axis=0)
    rows = {
        "hearts": str(len(scores.dice)),
        "largest difference of the C-SDG, mm": f"{max(scores.distance_mm):.3f}",
        "codes that agree, mean / least": f"{np.mean(scores.codes):.2%} / {min(scores.codes):.2%}",
        "Dice between the two, mean / least": f"{np.mean(scores.dice):.5f} / {min(scores.dice):.5f}",
        "p95 between the surfaces, mm, mean / largest": f"{np.mean(scores.p95_mm):.4f} / {max(scores.p95_mm):.4f}",
        "Dice with the truth, exact / nearest vertex": f"{truth[0]:.4f} / {truth[1]:.4f}",
        "CPU s of the C-SDG, exact / nearest vertex": f"{seconds[0]:.3f} / {seconds[1]:.3f}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


@click.command()
@click.option("--model", help="Bundle folder or name.  [default: the installed one]")
@click.option("--hearts", type=click.IntRange(1), default=20, show_default=True)
@click.option("--atlas", type=click.Path(exists=True, file_okay=False, path_type=Path), help="CAP MESA shape atlas.")
@click.option("--masks", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of label maps.")
def main(model: str | None, hearts: int, atlas: Path | None, masks: Path | None) -> None:
    """Compare both C-SDGs on simulated stacks, or on real ones (--masks)."""
    if mesh_distance.KERNEL != "native":
        raise click.ClickException("the compiled kernel is missing: there is nothing to compare with")
    bundle = load_bundle(model)
    engine = open_engine(bundle, "onnx", "cpu", 1)
    pipeline, scores = Pipeline(bundle, engine), Scores()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for stack, truth in stacks(atlas, masks, hearts):
            compare(scores, pipeline, engine, stack, truth)
    click.echo(table(scores))


if __name__ == "__main__":
    main()
