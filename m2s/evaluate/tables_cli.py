"""`m2s-eval table1`, `table2` and `table3`: the paper's tables, measured again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from m2s.baselines.registry import BASELINES
from m2s.evaluate.names import is_plugin
from m2s.evaluate.options import FILE, FOLDER, Options, labelled, setup_of, shared, source
from m2s.evaluate.trained import weights_of
from m2s_runtime.errors import NoInputs, UsageProblem

if TYPE_CHECKING:
    from m2s.evaluate.published import TableNumber
    from m2s.evaluate.study import Stacks, Study
    from m2s.evaluate.tables import Block
    from m2s.evaluate.work import Item, Setup


class TableOptions(Options):
    """What `_table` adds."""

    atlas: Path | None
    label_maps: Path | None
    draws: int | None
    limit: int | None
    few: int
    slow: tuple[str, ...]
    latex: Path | None


def _table(command: Callable[..., None]) -> Callable[..., None]:
    """Options of a table."""
    options = [
        click.option("--atlas", type=FOLDER, default=None, help="Folder of the CAP MESA shape atlas."),
        click.option(
            "--label-maps", type=FOLDER, default=None, help="Or folder of the paper's data set: its validation part."
        ),
        click.option("--draws", type=click.IntRange(1), default=None, help="Stacks a heart: 12 simulated, else 1."),
        click.option("--limit", type=click.IntRange(1), default=None, help="Only this many hearts, spread over all."),
        click.option(
            "--few",
            type=click.IntRange(1),
            default=12,
            show_default=True,
            help="Hearts, a stack each, that slow methods are scored on, and every method beside them.",
        ),
        click.option(
            "--slow",
            multiple=True,
            metavar="NAME",
            help="A method to be scored there only; srheart and, on a CPU, networks of published size always are.",
        ),
        click.option("--latex", type=FILE, default=None, help="Write the table for LaTeX too."),
    ]
    for option in reversed(options):
        command = option(command)
    return shared(command)


@click.command()
@_table
def table1(**options: Unpack[TableOptions]) -> None:
    """Table 1: all methods on simulated stacks."""
    from m2s.evaluate.published import SIMULATION

    stacks, setup = _simulated(options), _setup(1, options)
    blocks = _study(options, setup).blocks(stacks, setup, SIMULATION)
    _report("The methods in the simulation setting", blocks, setup, options)


@click.command()
@click.option("--tuned", type=FOLDER, default=None, help="Run that holds the methods of --baselines, fine-tuned.")
@click.option("--tuned-model", default=None, help="Bundle of ours with its MCSR-Net fine-tuned.")
@click.option(
    "--tuned-also",
    multiple=True,
    callback=labelled,
    metavar="NAME=BUNDLE",
    help="The method NAME of --also, fine-tuned. May be repeated.",
)
@_table
def table2(
    tuned: Path | None,
    tuned_model: str | None,
    tuned_also: tuple[tuple[str, str], ...],
    **options: Unpack[TableOptions],
) -> None:
    """Table 2: all methods on clinical stacks, as trained and fine-tuned.

    With --atlas on a stand-in for clinical stacks, with --label-maps on the acquired stacks of the paper's data set.
    """
    from m2s.evaluate import published

    _check_draws(options, simulated=False)
    stacks, setup = _clinical(options), _setup(2, options)
    second = _tuned_setup(setup, tuned, tuned_model, tuned_also)
    study = _study(options, setup, *([second] if second else []))
    blocks = study.blocks(stacks, setup, published.DIRECT, ", direct")
    if second is not None:
        blocks += study.tuned_blocks(stacks, setup, second, published.TUNED)
    _report("The methods in the clinical setting", blocks, setup, options)


@click.command()
@click.option("--simulation", is_flag=True, help="In the simulation setting too, which the paper does not show.")
@_table
def table3(simulation: bool, **options: Unpack[TableOptions]) -> None:  # noqa: FBT001 - click passes it by name
    """Table 3: ablations on clinical stacks, as trained; stacks as in table2."""
    from m2s.evaluate.published import ABLATIONS

    _check_draws(options, simulated=simulation)
    stacks, setup = _clinical(options), _setup(3, options)
    study = _study(options, setup)
    blocks = study.blocks(stacks, setup, ABLATIONS, ", direct")
    if simulation:
        blocks += study.blocks(_simulated(options), setup, {})
    _report("Ablations", blocks, setup, options)


def _setup(number: "TableNumber", options: TableOptions) -> "Setup":
    """The table's methods as far as they are trained, or those asked for; plug-ins alone are added to the table's."""
    from m2s.evaluate.published import METHODS_OF

    names = options["names"]
    if all(map(is_plugin, names)):
        run, wanted = options["baselines"], METHODS_OF[number]
        there = [name for name in wanted if name not in BASELINES or weights_of(name, run)]
        _tell_missing("in this table, for --baselines has none", [name for name in wanted if name not in there])
        options["names"] = (*there, *names)
    setup = setup_of(options)
    if unknown := sorted(set(options["slow"]) - set(setup.names)):
        raise UsageProblem(f"--slow {unknown[0]}: choose among the methods of this table, {', '.join(setup.names)}")
    return setup


def _tuned_setup(
    setup: "Setup", run: Path | None, model: str | None, also: tuple[tuple[str, str], ...]
) -> "Setup | None":
    """What was fine-tuned, if anything is said to be."""
    if unknown := sorted(dict(also).keys() - set(setup.names)):
        raise UsageProblem(f"--tuned-also {unknown[0]}: give --also {unknown[0]}=BUNDLE, what it was fine-tuned from")
    if run is None and model is None and not also:
        return None
    if run is not None and setup.baselines is None:
        raise UsageProblem(f"--tuned {run}: give --baselines RUN too, where the methods are as they were before")
    competing = [name for name in setup.names if name in BASELINES and BASELINES[name].tunable]
    own = [name for name in setup.names if name in ("ours", "mcsr") or name in dict(setup.also)]
    there = {name for name in competing if weights_of(name, run)} | dict(also).keys()
    there |= {"ours", "mcsr"} & set(own) if model is not None else set[str]()
    if not there:
        raise NoInputs(f"{run or model}: holds no method of this table; m2s-train baseline NAME RUN --init … tunes one")
    _tell_missing("among the fine-tuned methods", [name for name in (*competing, *own) if name not in there])
    names = tuple(name for name in setup.names if name in there)
    return replace(setup, names=names, options=replace(setup.options, model=model), baselines=run, also=also)


def _check_draws(options: TableOptions, *, simulated: bool) -> None:
    if options["draws"] is not None and options["label_maps"] is not None and not simulated:
        raise UsageProblem("--draws: an acquired stack is one stack; leave it away")


def _tell_missing(where: str, names: Sequence[str]) -> None:
    from m2s.evaluate.published import title_of

    if names:
        click.echo(f"not {where}: {', '.join(map(title_of, names))}", err=True)


def _study(options: TableOptions, *setups: "Setup") -> "Study":
    from m2s.evaluate.rows import RowFile
    from m2s.evaluate.study import Study, slow_methods

    slow = frozenset[str]().union(*(slow_methods(setup, options["slow"]) for setup in setups))
    return Study(slow, RowFile(options["out"]), options["jobs"])


def _simulated(options: TableOptions) -> "Stacks":
    """The simulation setting on the data that was given."""
    from m2s.data.labelmaps import LabelMaps
    from m2s.evaluate.hearts import Cohort
    from m2s.evaluate.settings import MapStack
    from m2s.evaluate.simulation import SimulatedStack

    seed, draws = options["seed"], range(options["draws"] or 12)
    folder, mapped = source(options["atlas"], options["label_maps"])
    if mapped:
        cases = LabelMaps(folder).cases("validation")
        maps = [[MapStack(folder, *case, draw, seed) for draw in draws] for case in cases]
        return _stacks("Simulated motion, the paper's label maps", maps, options)
    hearts = Cohort(folder)
    made = [[SimulatedStack(hearts, row, draw, seed) for draw in draws] for row in hearts.rows]
    return _stacks("Simulated motion, hearts of the atlas", made, options)


def _clinical(options: TableOptions) -> "Stacks":
    """The clinical setting on the data that was given."""
    from m2s.data.labelmaps import LabelMaps
    from m2s.evaluate.hearts import Cohort
    from m2s.evaluate.settings import PairStack, StandInStack

    seed, draws = options["seed"], range(options["draws"] or 1)
    folder, mapped = source(options["atlas"], options["label_maps"])
    if mapped:
        pairs = [[PairStack(folder, *case)] for case in LabelMaps(folder).pairs("validation")]
        return _stacks("Acquired stacks of the paper's data set", pairs, options)
    hearts = Cohort(folder)
    made = [[StandInStack(hearts, row, draw, seed) for draw in draws] for row in hearts.rows]
    return _stacks("Stand-in for clinical stacks, hearts of the atlas", made, options)


def _stacks(title: str, hearts: "Sequence[Sequence[Item]]", options: TableOptions) -> "Stacks":
    """Units of work heart by heart, the first of each for slow methods."""
    from m2s.data.labelmaps import split
    from m2s.evaluate.study import Stacks
    from m2s.evaluate.work import spaced

    if not hearts:
        first = ", ".join(map(str, split()["validation"][:3]))
        raise NoInputs(
            f"{options['label_maps']}: no <id>/HR_ED.nii.gz or HR_ES.nii.gz of the validation part of the split; its"
            f" numbers are {first} …"
        )
    hearts = spaced(hearts, options["limit"] or len(hearts))
    every = [item for heart in hearts for item in heart]
    return Stacks(title, every, [heart[0] for heart in spaced(hearts, options["few"])])


def _report(caption: str, blocks: "Sequence[Block]", setup: "Setup", options: TableOptions) -> None:
    from m2s.evaluate.scores import check_usable
    from m2s.evaluate.study import notes_of
    from m2s.evaluate.tables import latex, markdown
    from m2s_runtime.atomic import write_text

    notes = notes_of(blocks, setup)
    click.echo(markdown(blocks, notes))
    if options["latex"] is not None:
        write_text(options["latex"], latex(caption, blocks, notes))
    check_usable([row for block in blocks for line in block.lines for row in line.rows])
