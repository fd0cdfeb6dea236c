"""How far do volumes of the reconstruction lie from the sums over the slices, and ED from ES?

    m2s-run DATA/acdc_masks --labels acdc --out OUT
    python benchmarks/measurement_agreement.py --out OUT --masks DATA/acdc_masks

A sum over slices is area times distance between slices, what is done by hand; it is no truth, for it cuts the heart at
half a slice beyond the first and the last. Bias is reconstruction less sum; limits of agreement hold 95 % of the
differences (Bland and Altman, Lancet 1986;327:307): bias ± 1.96 standard deviations. A `cases.csv` beside the masks
gives each `file` its `group`.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from m2s.evaluate.acdc import find_stacks
from m2s_runtime.labels import SCHEMES
from m2s_runtime.studies import STUDIES
from m2s_runtime.table import TABLE
from m2s_runtime.volume import read_study

Row = Mapping[str, str]


@dataclass(frozen=True)
class Sums:
    """Volumes by the slices of one mask, ml."""

    wall: float
    cavity: float


@dataclass(frozen=True)
class Pair:
    """A volume of the reconstruction, None where it is withheld, beside that of the slices."""

    group: str
    found: float | None
    by_slices: float


def slice_sums(path: Path, scheme: str) -> Sums:
    """Voxels of wall and left cavity times their volume; errors as of `read_study`."""
    study, labels = read_study(path), SCHEMES[scheme]
    voxel = abs(float(np.linalg.det(study.affine[:3, :3]))) / 1000
    wall, cavity = (float(np.count_nonzero(study.labels == label)) * voxel for label in (labels.wall, labels.left))
    return Sums(wall, cavity)


def limits(pairs: Iterable[Pair]) -> str:
    """Cells of a table: how many, mean by the slices, bias and limits of agreement in ml, and how many are withheld."""
    every = list(pairs)
    both = np.array([(pair.found, pair.by_slices) for pair in every if pair.found is not None])
    if len(both) < 2:
        return f"{len(both)} | | | | {len(every) - len(both)}"
    difference = both[:, 0] - both[:, 1]
    bias, reach = difference.mean(), 1.96 * difference.std(ddof=1)
    share = 100 * bias / both[:, 1].mean()
    return (
        f"{len(both)} | {both[:, 1].mean():.1f} | {bias:+.1f} ({share:+.1f} %) | {bias - reach:+.1f} to"
        f" {bias + reach:+.1f} | {len(every) - len(both)}"
    )


def table(title: str, pairs: list[Pair]) -> str:
    """Markdown, one line a group and one for all."""
    lines = [f"| {title} | n | by slices | bias | 95 % limits of agreement | withheld |", "|---|---|---|---|---|---|"]
    groups = sorted({pair.group for pair in pairs} - {""})
    lines += [f"| {group} | {limits(pair for pair in pairs if pair.group == group)} |" for group in groups]
    return "\n".join([*lines, f"| all | {limits(pairs)} |", ""])


def phases(studies: list[Row], sums: Mapping[str, Sums], groups: Mapping[str, str]) -> str:
    """Markdown: wall volume at end-systole less end-diastole, and the ejection fraction, beside those of the slices."""
    wall = [
        (100 * (float(s["es_volume_ml"]) / float(s["ed_volume_ml"]) - 1),
         100 * (sums[s["es_case"]].wall / sums[s["ed_case"]].wall - 1), groups[s["ed_case"]])
        for s in studies if s["ed_volume_ml"] and s["es_volume_ml"]
    ]  # fmt: skip
    ejection = [
        Pair(groups[s["ed_case"]], float(s["ef_percent"]) if s["ef_percent"] else None,
             100 * (1 - sums[s["es_case"]].cavity / sums[s["ed_case"]].cavity))
        for s in studies if s["ed_case"]
    ]  # fmt: skip
    lines = ["| wall, ES less ED, % of ED | n | reconstruction | by slices |", "|---|---|---|---|"]
    for group in [*sorted({group for *_, group in wall} - {""}), "all"]:
        both = np.array([pair[:2] for pair in wall if group in ("all", pair[2])])
        cells = (f"{mean:+.1f} ± {sd:.1f}" for mean, sd in zip(both.mean(axis=0), both.std(axis=0), strict=True))
        lines.append(f"| {group} | {len(both)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", table("ejection fraction, points of %", ejection)])


def rows_of(path: Path) -> list[Row]:
    """Lines of a table; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@click.command(help=__doc__)
@click.option("--out", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--masks", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--labels", "scheme", default="acdc", type=click.Choice(sorted(SCHEMES)))
def main(out: Path, masks: Path, scheme: str) -> None:
    """Print the tables."""
    stacks = {stack.path.name: stack for stack in find_stacks(masks, scheme)}
    done = [row for row in rows_of(out / TABLE) if row["status"] == "ok" and row["input"] in stacks]
    sums = {row["case"]: slice_sums(stacks[row["input"]].path, scheme) for row in done}
    groups = {row["case"]: stacks[row["input"]].group for row in done}
    for title, column, part in (("wall, ml", "volume_ml", "wall"), ("cavity, ml", "cavity_ml", "cavity")):
        pairs = [
            Pair(groups[row["case"]], float(row[column]) if row[column] else None, getattr(sums[row["case"]], part))
            for row in done
        ]
        click.echo(table(title, pairs))
    studies = [row for row in rows_of(out / STUDIES) if row["ed_case"] in sums and row["es_case"] in sums]
    if studies:
        click.echo(phases(studies, sums, groups))


if __name__ == "__main__":
    main()
