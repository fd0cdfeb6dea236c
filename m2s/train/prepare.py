"""`m2s-train prepare`: the paper's ground truth, a template registered to every high-resolution label map."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from m2s.train.guarded import guarded
from m2s_runtime.errors import SOME_FAILED, UsageProblem

if TYPE_CHECKING:
    from m2s.data.prepare import Row

_SHEET: Final = "contact_sheet.png"


@click.command()
@click.option("--label-maps", required=True, type=click.Path(exists=True, file_okay=False),
              help="Folder of high-resolution maps, <id>/HR_ED.nii.gz …")  # fmt: skip
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="Folder for the fits, quality.csv and contact_sheet.png.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), default=lambda: os.cpu_count() or 1, show_default="CPU cores",
              help="Processes, one thread each.")  # fmt: skip
@click.option("--iterations", type=click.IntRange(1), help="Of Adam a heart instead of the recipe's 500.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--subjects", help="Numbers and ranges, as 3,7,100-199; default: all.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N maps.")
@click.option("-q", "--quiet", is_flag=True, help="No line a case.")
def prepare(
    label_maps: str,
    out: Path,
    jobs: int,
    iterations: int | None,
    seed: int,
    subjects: str | None,
    limit: int | None,
    *,
    quiet: bool,
) -> None:
    """Register a template to every high-resolution map, for --prepared. A stopped run goes on when given again."""
    with guarded(out, "--out", "goes on"):
        rows = _prepare(label_maps, out, jobs, iterations, seed, subjects, limit, quiet=quiet)
    failed = sum(row.status == "failed" for row in rows)
    usable = sum(row.usable == "yes" for row in rows)
    click.echo(f"{len(rows)} maps: {usable} usable, {len(rows) - usable - failed} fitted badly, {failed} failed")
    click.echo(out / "quality.csv")
    sys.exit(SOME_FAILED if failed else 0)


def _prepare(
    label_maps: str,
    out: Path,
    jobs: int,
    iterations: int | None,
    seed: int,
    subjects: str | None,
    limit: int | None,
    *,
    quiet: bool,
) -> "Sequence[Row]":
    from m2s.data.fit_sheet import draw_sheet
    from m2s.data.prepare import prepare, tasks
    from m2s.data.registration import Recipe

    recipe = Recipe(seed=seed) if iterations is None else Recipe(iterations=iterations, seed=seed)
    work = tasks(label_maps, out, recipe, None if subjects is None else parse_subjects(subjects))[:limit]
    done = 0

    def tell(row: "Row") -> None:
        nonlocal done
        done += 1
        if not quiet:
            click.echo(f"{done}/{len(work)} {row.case}: {_said(row)}", err=True)

    rows = prepare(work, min(jobs, max(len(work), 1)), tell)
    draw_sheet(out, [row for row in rows if row.quality is not None], out / _SHEET)
    return rows


def _said(row: "Row") -> str:
    if row.quality is None:
        return f"failed ({row.error}) {row.message.strip().splitlines()[-1]}"
    told = f"{row.quality.mean_mm:.2f} mm, Dice {row.quality.dice:.3f}, {row.seconds:.0f} s"
    return told + ("" if row.made else ", was there") + (f", not usable: {row.message}" if row.message else "")


def parse_subjects(text: str) -> list[int]:
    """Numbers of `3,7,100-199`.

    Raises:
        UsageProblem: not such a list.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageProblem(f"--subjects {text}: give numbers and ranges, as 3,7,100-199")
        numbers += range(int(first), int(last if dash else first) + 1)
    if not numbers:
        raise UsageProblem(f"--subjects {text}: the range is empty")
    return numbers
