"""What share of the C-SDG in the surface is worth, on selection hearts: Dice, ASSD and roughness against the share.

    python benchmarks/blend_share.py --atlas DATA/cap_mesa_lv_pca --hearts 32

One stack a heart under the published motion, the same slice shifts, C-SDG and noise for every share. A share of 0 is
the surface as drawn; every other one is smoothed, 1 is the C-SDG alone.
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from m2s.baselines.method import GRID_TO_MM, Prediction, from_mask
from m2s.evaluate.coarse import Shared, shared
from m2s.evaluate.hearts import Cohort
from m2s.evaluate.networks import ModelOptions
from m2s.evaluate.scores import Row, score
from m2s.evaluate.steps import Way, sampled
from m2s.evaluate.work import Setup
from m2s_runtime.csdg import coarse_sdg
from m2s_runtime.grid import NOMINAL_STEP, PADDING, PLANES
from m2s_runtime.handles import surface_without_handles

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
MASK = "MCSR-Net's mask"
FIGURES = {
    "dice": ("Dice, points", 100, 3),
    "assd": ("ASSD mm", 1, 4),
    "roughness_error": ("roughness error 1/m", 1000, 1),
}


def scores(found: Shared) -> dict[str, Row]:
    """Figures of one heart by share, and of the mask that the C-SDG is of."""
    manifest, engine, truth = found.pipeline.manifest, found.pipeline.engine, found.subject.truth
    wall = found.result.probability >= 0.5
    csdg = coarse_sdg(wall)
    zc = engine.run("encode", {"csdg": csdg[None, None]})["zc"]
    way = Way(manifest.steps, manifest.temperature)
    rows = {MASK: score(from_mask(wall[:, :, PADDING : PADDING + PLANES], NOMINAL_STEP, None), truth)}
    for share in SHARES:
        sdg = sampled(engine, replace(manifest, csdg_share=share), way, csdg, zc, found.key, 0)
        surface = surface_without_handles(sdg, GRID_TO_MM)
        rows[f"{share:g}"] = score(Prediction(surface.sdg, surface.mesh, None, binary=False), truth)
    return rows


def line(name: str, rows: list[Row], against: list[Row]) -> str:
    """Mean difference to the mask ± standard error; the roughness error as it is."""
    cells: list[str] = []
    for key, (_, factor, digits) in FIGURES.items():
        values = np.array([factor * float(row[key] or np.nan) for row in rows])
        if key == "roughness_error":
            cells.append(f"{values.mean():.{digits}f}")
            continue
        apart = values - [factor * float(row[key] or np.nan) for row in against]
        cells.append(f"{apart.mean():+.{digits}f} ± {apart.std(ddof=1) / len(apart) ** 0.5:.{digits}f}")
    return f"| {name} | {' | '.join(cells)} |"


@click.command()
@click.option("--atlas", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--hearts", type=click.IntRange(2), default=32, show_default=True)
@click.option("--model", default=None, help="Bundle; the installed one.")
def main(atlas: Path, hearts: int, model: str | None) -> None:
    """Print a table of mean differences to the surface of MCSR-Net's own mask."""
    cohort, methods = Cohort(atlas, "selection"), Setup(("ours",), ModelOptions(model=model)).methods()
    rows = cohort.rows[:: max(len(cohort.rows) // hearts, 1)][:hearts]
    stacks = (shared(methods, cohort, row, 0, 0, "paper") for row in rows)
    found = [scores(stack) for stack in stacks]
    click.echo(f"| share of the C-SDG | {' | '.join(name for name, _, _ in FIGURES.values())} |\n|{'---|' * 4}")
    for name in found[0]:
        click.echo(line(name, [one[name] for one in found], [one[MASK] for one in found]))


if __name__ == "__main__":
    main()
