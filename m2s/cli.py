"""Commands of the training environment."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Unpack

import click

from m2s.evaluate.figure_cli import figure
from m2s.evaluate.options import FOLDER, Options, check_law, collect, setup_of, shared
from m2s.evaluate.tables_cli import table1, table2, table3
from m2s.finite import Finite
from m2s_runtime.errors import INTERRUPTED, CaseError, M2SError, Stop, UsageProblem, exit_codes

if TYPE_CHECKING:
    from m2s.evaluate.hearts import Cohort, CohortName
    from m2s.evaluate.scores import Row
    from m2s.evaluate.work import Item


def _stop(error: M2SError, exit_code: int) -> NoReturn:
    click.echo(f"error: {error}", err=True)
    sys.exit(exit_code)


class _Group(click.Group):
    """Turns what ends a run on purpose into one line and its exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except Stop as error:
            _stop(error, error.exit_code)
        except CaseError as error:  # no batch goes on without this case
            _stop(error, UsageProblem.exit_code)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


@click.group(cls=_Group, epilog=exit_codes())
def evaluate() -> None:
    """Reproduce the figures of the README; a Markdown table goes to stdout."""


@evaluate.command()
@click.option("--atlas", type=FOLDER, required=True, help="Folder of the CAP MESA shape atlas.")
@click.option("--cohort", type=click.Choice(["validation", "wide"]), default="validation", show_default=True)
@click.option("--draws", type=click.IntRange(1), default=12, show_default=True, help="Stacks a heart.")
@click.option("--limit", type=click.IntRange(1), default=None, help="Only this many hearts, spread over the cohort.")
@click.option("--law", default="paper", show_default=True, help="paper, positive, normal:SD or one-off:MM.")
@click.option("--step", "steps_mm", type=Finite(4, 14), multiple=True, help="Slice step, mm; repeatable.")
@shared
def simulation(
    atlas: Path,
    cohort: "CohortName",
    draws: int,
    limit: int | None,
    law: str,
    steps_mm: tuple[float, ...],
    **options: Unpack[Options],
) -> None:
    """Hearts of an atlas cohort, acquired as slices that moved."""
    from m2s.evaluate import simulation as rows
    from m2s.evaluate.hearts import Cohort
    from m2s.evaluate.work import spaced
    from m2s_runtime.grid import NOMINAL_STEP

    check_law(law)
    hearts = Cohort(atlas, cohort)
    steps = dict.fromkeys(steps_mm or (NOMINAL_STEP,))
    chosen = spaced(hearts.rows, limit or len(hearts.rows))
    seed = options["seed"]
    stacks = [
        rows.SimulatedStack(hearts, row, draw, seed, law, step)
        for row in chosen
        for step in steps
        for draw in range(draws)
    ]
    _report(stacks, options, rows.groups, rows.summary)


class CoarseOptions(Options):
    """What `_coarse` adds."""

    atlas: Path
    draws: int
    limit: int | None
    law: str


def _coarse(command: Callable[..., None]) -> Callable[..., None]:
    """Options of what starts from the coarse hearts of the whole method."""
    options = [
        click.option("--atlas", type=FOLDER, required=True, help="Folder of the CAP MESA shape atlas."),
        click.option("--draws", type=click.IntRange(1), default=1, show_default=True, help="Stacks a heart."),
        click.option("--limit", type=click.IntRange(1), default=None, help="Only this many hearts, spread over all."),
        click.option("--law", default="paper", show_default=True, help="paper, positive, normal:SD or one-off:MM."),
    ]
    command = shared(command)
    for option in reversed(options):
        command = option(command)
    return command


@evaluate.command()
@_coarse
def steps(**options: Unpack[CoarseOptions]) -> None:
    """Numbers of denoising steps, and ways to start them, on the same coarse hearts."""
    from m2s.evaluate import steps as rows

    if options["steps"] or options["samples"] > 1 or options["refine"]:
        raise UsageProblem("this evaluation has its own numbers of steps: leave --steps, --samples and --refine away")
    _show_coarse(rows.SteppedStack, rows.groups, rows.COLUMNS, options)


@evaluate.command()
@_coarse
def csdg(**options: Unpack[CoarseOptions]) -> None:
    """Exact and approximate distances as the condition, on the same coarse hearts."""
    from m2s.evaluate import csdg as rows

    _show_coarse(rows.CsdgStack, rows.groups, rows.COLUMNS, options)


def _show_coarse(
    stack: "Callable[[Cohort, int, int, int, str], Item]",
    groups: "Callable[[list[Row]], dict[str, list[Row]]]",
    columns: tuple[str, ...],
    options: CoarseOptions,
) -> None:
    from m2s.evaluate.hearts import Cohort
    from m2s.evaluate.scores import check_usable, markdown
    from m2s.evaluate.work import spaced

    check_law(options["law"])
    _only_ours(options)
    hearts, draws = Cohort(options["atlas"], "validation"), range(options["draws"])
    chosen = spaced(hearts.rows, options["limit"] or len(hearts.rows))
    made = [stack(hearts, row, draw, options["seed"], options["law"]) for row in chosen for draw in draws]
    found = _collect(made, options)
    click.echo(markdown(groups(found), columns))
    check_usable(found)


@evaluate.command()
@click.option(
    "--data", type=FOLDER, required=True, help="Folder of short-axis label maps, slices along the third axis."
)
@click.option("--labels", default="acdc", show_default=True, help="Label scheme, as in m2s-run.")
@click.option("--limit", type=click.IntRange(1), default=None, help="Only this many files, spread over the folder.")
@shared
def acdc(data: Path, labels: str, limit: int | None, **options: Unpack[Options]) -> None:
    """Real stacks: slices held back, slices given, topology; by diagnosis where cases.csv tells it."""
    from m2s.evaluate import acdc as rows
    from m2s.evaluate.work import spaced

    stacks = rows.find_stacks(data, labels)
    _report(spaced(stacks, limit or len(stacks)), options, rows.groups, rows.summary)


@evaluate.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with the files of subject 1081.")
@click.option("--draws", type=click.IntRange(1), default=12, show_default=True, help="Own simulations.")
@shared
def subject1081(data: Path, draws: int, **options: Unpack[Options]) -> None:
    """A subject of the paper's data set: own simulation and the two given stacks."""
    from m2s.evaluate import subject1081 as rows

    simulated = [rows.OwnSimulation(data, draw, options["seed"]) for draw in range(draws)]
    _report([*simulated, *(rows.GivenStack(data, number) for number in (1, 2))], options, rows.groups)


@evaluate.command()
@click.option("--atlas", type=FOLDER, required=True, help="Folder of the CAP MESA shape atlas.")
@click.option("--draws", type=click.IntRange(1), default=1, show_default=True, help="Stacks a heart.")
@click.option("--limit", type=click.IntRange(1), default=64, show_default=True, help="Hearts that are scored.")
@click.option("--fit-limit", type=click.IntRange(1), default=32, show_default=True, help="Other hearts, to fit on.")
@click.option("--law", default="paper", show_default=True, help="paper, positive, normal:SD or one-off:MM.")
@shared
def spread(atlas: Path, draws: int, limit: int, fit_limit: int, law: str, **options: Unpack[Options]) -> None:
    """Calibration of the per-vertex spread: --samples 8 unless told otherwise."""
    from m2s.evaluate import spread as rows
    from m2s.evaluate.hearts import Cohort
    from m2s.evaluate.work import spaced

    check_law(law)
    _only_ours(options)
    options["samples"] = options["samples"] if options["samples"] > 1 else rows.SAMPLES
    cohorts = {Cohort(atlas, "selection"): fit_limit, Cohort(atlas, "validation"): limit}
    stacks = [
        rows.SpreadStack(cohort, row, draw, options["seed"], law)
        for cohort, count in cohorts.items()
        for row in spaced(cohort.rows, count)
        for draw in range(draws)
    ]
    click.echo(rows.table(_collect(stacks, options)))


@evaluate.command()
@click.option("--atlas", type=FOLDER, required=True, help="Folder of the CAP MESA shape atlas.")
@click.option("--draws", type=click.IntRange(1), default=1, show_default=True, help="Stacks a heart and damage.")
@click.option("--limit", type=click.IntRange(1), default=64, show_default=True, help="Hearts that are scored.")
@click.option("--cohort", type=click.Choice(["validation", "wide"]), default="validation", show_default=True)
@click.option(
    "--fit",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Fit on selection hearts what Dice to expect, score with that, and write it here for m2s-export --fitted.",
)
@click.option("--fit-limit", type=click.IntRange(10), default=48, show_default=True, help="Selection hearts for --fit.")
@shared
def flags(
    atlas: Path,
    draws: int,
    limit: int,
    cohort: "CohortName",
    fit: Path | None,
    fit_limit: int,
    **options: Unpack[Options],
) -> None:
    """Spoilt stacks: how many bad reconstructions are flagged, and how many good ones."""
    import json

    from m2s.evaluate import dice_model
    from m2s.evaluate import flags as rows
    from m2s.evaluate.degrade import SPOILERS
    from m2s.evaluate.hearts import Cohort
    from m2s.evaluate.rows import check_place
    from m2s.evaluate.scores import check_usable
    from m2s.evaluate.work import spaced

    _only_ours(options)
    check_place(fit)
    fitting = (Cohort(atlas, "selection"), Cohort(atlas, "wide-selection")) if fit else ()
    stacks = [
        rows.SpoiltStack(part, row, spoiler, draw, options["seed"])
        for part, count in [*((part, fit_limit) for part in fitting), (Cohort(atlas, cohort), limit)]
        for row in spaced(part.rows, count)
        for spoiler in SPOILERS
        for draw in range(draws)
    ]
    found = _collect(stacks, options)
    check_usable(found)
    limits = next(json.loads(str(row["limits"])) for row in found if row.get("limits"))
    scored = [row for row in found if row.get("cohort") == cohort]
    if fit:
        others = [row for row in found if row.get("cohort") != cohort and rows.tellable(row, limits)]
        fitted = dice_model.fit(others, rows.GOOD)
        fitted.write(fit)
        click.echo(f"fitted on {len(others)} stacks of selection hearts: {fit}\n")
        scored = rows.refitted(scored, fitted, limits)
        limits |= fitted.flag_limits
    click.echo(rows.report(scored, limits))


for _command in (table1, table2, table3, figure):
    evaluate.add_command(_command)


def _only_ours(options: Options) -> None:
    if set(options["names"]) - {"ours"} or options["also"]:
        raise UsageProblem("this evaluation is of the whole method of one bundle: leave --method and --also away")
    if options["base_limit"] is not None:
        raise UsageProblem("this evaluation is of walls as the networks end them: leave --base-limit away")


def _report(
    items: "Sequence[Item]",
    options: Options,
    groups: "Callable[[list[Row]], dict[str, list[Row]]]",
    summary: "Callable[[list[Row]], str] | None" = None,
) -> None:
    from m2s.evaluate.scores import check_usable, markdown

    rows = _collect(items, options)
    click.echo(markdown(groups(rows)))
    if summary is not None:
        click.echo(summary(rows))
    check_usable(rows)


def _collect(items: "Sequence[Item]", options: Options) -> "list[Row]":
    from m2s.evaluate.rows import RowFile

    return collect(items, setup_of(options), RowFile(options["out"]), options["jobs"])
