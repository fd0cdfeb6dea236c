"""How near the registered template comes to a surface that is known, and how well it fits real maps.

    python benchmarks/template_fit.py --atlas DATA/cap_mesa_lv_pca --hearts 50 --out template_fit.csv
    python benchmarks/template_fit.py --label-map DATA/cardiac_sr_label_maps/1081_ED_HR.nii.gz

Atlas hearts (selection rows, shaped like the validation cohort) are voxelised at 1 x 1 x 2 mm; only the mask is fitted,
and the true surface judges three surfaces made from it: `marching_cubes` of the mask, `smoothed` (of its signed
distances, smoothed by 1 mm, which stands in where no fits were prepared) and `template`. Distances are exact, mm;
self-intersections and Dice with the mask are the fit's; one thread, seconds of processor time. A label map has no true
surface: the distances of its line are to the marching cubes surface.
"""

import csv
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import torch

from m2s.data.atlas import SELECTION_ROWS, VALIDATION, AtlasCohort
from m2s.data.labelmaps import LabelMap, read_label_map
from m2s.data.prepare import fit_label_map
from m2s.data.quality import mask_surface
from m2s.data.registration import Recipe
from m2s.metrics import SampledSurface, surface_distance
from m2s_runtime.surface import Mesh

Row = dict[str, object]


def judge(label_map: LabelMap, truth: Mesh | None, recipe: Recipe) -> Row:
    """The figures of one heart; without a truth those against the marching-cubes surface."""
    raw, smooth = mask_surface(label_map.mask), label_map.heart()
    begun = time.process_time()
    fit = fit_label_map(label_map, recipe)
    seconds = time.process_time() - begun
    surfaces = {
        "marching_cubes": raw,
        "smoothed": Mesh(smooth.vertices, smooth.faces),
        "template": Mesh(fit.heart.vertices, fit.heart.faces),
    }
    reference = SampledSurface.of(raw if truth is None else truth, "truth")
    row: Row = {"case": label_map.id}
    for name, surface in surfaces.items():
        if truth is None and name == "marching_cubes":
            continue
        distance = surface_distance(SampledSurface.of(surface, "prediction"), reference)
        row |= {f"{name}_assd": distance.assd, f"{name}_hd95": distance.hd95}
    quality = {name: value for name, value in asdict(fit.quality).items() if name not in ("mean_mm", "p95_mm")}
    return row | quality | {"seconds": seconds}


def atlas_rows(folder: str, hearts: int, recipe: Recipe) -> Iterator[Row]:
    """One row a heart: as many people of the selection part, ED of the even and ES of the odd ones."""
    cohort = AtlasCohort(folder, SELECTION_ROWS, 0, augment=VALIDATION)
    for k in range(hearts):
        person = SELECTION_ROWS[(2 * k + k % 2) % len(SELECTION_ROWS)]
        heart = cohort.heart(person, "ES" if k % 2 else "ED")
        yield judge(LabelMap(heart.id, heart.mask, np.eye(4), False), Mesh(heart.vertices, heart.faces), recipe)


@click.command()
@click.option("--atlas", type=click.Path(exists=True, file_okay=False), help="Folder of the CAP MESA shape atlas.")
@click.option("--hearts", type=click.IntRange(1, 100), default=50, show_default=True)
@click.option("--label-map", "maps", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--iterations", type=click.IntRange(1), default=Recipe().iterations, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="CSV, one row a heart.")
def main(atlas: str | None, hearts: int, maps: tuple[Path, ...], iterations: int, out: Path | None) -> None:
    """Fit and print a line a heart, then mean and standard deviation."""
    torch.set_num_threads(1)
    recipe = Recipe(iterations=iterations)
    real = [show(judge(read_label_map(path), None, recipe)) for path in maps]
    known = [show(row) for row in atlas_rows(atlas, hearts, recipe)] if atlas is not None else []
    if not real + known:
        raise click.UsageError("nothing to do: give --atlas FOLDER or --label-map FILE")
    # Without a truth the distances mean something else: no mean is taken over both kinds.
    for rows in filter(None, (real, known)):
        summarise(rows)
    if out is not None:
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list((known or real)[-1]), restval="")
            writer.writeheader()
            writer.writerows(real + known)


def summarise(rows: list[Row]) -> None:
    """Print mean, standard deviation and worst value of every figure as a table."""
    print(f"\n| figure, {len(rows)} hearts | mean | sd | worst |\n|---|---|---|---|")
    for name in rows[0]:
        if name == "case":
            continue
        values = np.array([row[name] for row in rows], float)
        worst = values.min() if name in ("dice", "closed") else values.max()
        print(f"| {name} | {values.mean():.4g} | {values.std():.3g} | {worst:.4g} |")


def show(row: Row) -> Row:
    """Print a row."""
    told = (f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items())
    print(", ".join(told), flush=True)
    return row


if __name__ == "__main__":
    main()
