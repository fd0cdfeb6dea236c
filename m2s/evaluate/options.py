"""What every command of m2s-eval takes, and how its units of work are done; nothing heavy is imported for --help."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

import click

from m2s.evaluate.names import METHODS, is_plugin
from m2s.finite import Finite
from m2s_runtime.errors import UsageProblem

if TYPE_CHECKING:
    from m2s.evaluate.rows import RowFile
    from m2s.evaluate.scores import Row
    from m2s.evaluate.work import Item, Setup

FOLDER: Final = click.Path(exists=True, file_okay=False, path_type=Path)
FILE: Final = click.Path(dir_okay=False, path_type=Path)
_LABEL: Final = re.compile(r"\w[\w.+-]*")


def _methods(_: click.Context, param: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """Each of `METHODS`, or where to import a method from."""
    for name in names:
        if name not in METHODS and not is_plugin(name):
            message = f"{name!r} is none of {', '.join(METHODS)}, nor package.module:Class"
            raise click.BadParameter(message, param=param)
    return names


def labelled(_: click.Context, param: click.Parameter, given: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Callback of an option NAME=BUNDLE that may be repeated: names and bundles."""
    pairs = tuple((label, bundle) for label, _, bundle in (one.partition("=") for one in given))
    for label, bundle in pairs:
        if not bundle or not _LABEL.fullmatch(label) or label.lower() in METHODS:
            message = f"{label}={bundle}: give NAME=BUNDLE, the name of no other method, of letters, digits and . + - _"
            raise click.BadParameter(message, param=param)
    if len(dict(pairs)) < len(pairs):
        raise click.BadParameter("a name is given twice: one bundle a name", param=param)
    return pairs


class Choice(TypedDict):
    """What `choosing` adds to a command."""

    names: tuple[str, ...]
    model: str | None
    also: tuple[tuple[str, str], ...]
    baselines: Path | None
    engine: str
    device: str
    threads: int
    steps: int | None
    samples: int
    refine: int
    base_limit: float | None
    seed: int


class Options(Choice):
    """What `shared` adds to a command."""

    jobs: int
    out: Path | None


def choosing(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say which methods, and how they are opened."""
    options = [
        click.option(
            "--method",
            "names",
            multiple=True,
            callback=_methods,
            metavar="NAME",
            help=f"{', '.join(METHODS)}, or package.module:Class. May be repeated.",
        ),
        click.option("--model", default=None, help="Bundle: a folder or the name of an installed one."),
        click.option(
            "--also",
            multiple=True,
            callback=labelled,
            metavar="NAME=BUNDLE",
            help="The method ours of another bundle, in a row NAME. May be repeated.",
        ),
        click.option(
            "--baselines", type=FOLDER, default=None, help="Run that `m2s-train baseline` trained the others in."
        ),
        click.option("--engine", default="auto", show_default=True, help="Inference engine."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
        click.option("--steps", type=click.IntRange(1), default=None, help="DDIM steps instead of the bundle's."),
        click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads."),
        click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="Posterior samples."),
        click.option("--refine", type=click.IntRange(0), default=0, show_default=True, help="Re-registration passes."),
        click.option("--base-limit", type=Finite(0), metavar="MM", help="As of m2s-run; of the method ours."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of motion and sampling."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def shared(command: Callable[..., None]) -> Callable[..., None]:
    """Options that every row of figures takes."""
    options = [
        choosing,
        click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes, an engine each."),
        click.option("--out", type=FILE, default=None, help="CSV, a row a stack and method; extended if there."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def setup_of(options: Choice) -> "Setup":
    """Methods by name, `ours` where none is asked for."""
    from m2s.evaluate.networks import ModelOptions
    from m2s.evaluate.work import Setup

    model = ModelOptions(
        model=options["model"],
        engine=options["engine"],
        device=options["device"],
        threads=options["threads"],
        steps=options["steps"],
        seed=options["seed"],
        samples=options["samples"],
        refine=options["refine"],
        base_limit=options["base_limit"],
    )
    names = dict.fromkeys((*(options["names"] or ("ours",)), *(label for label, _ in options["also"])))
    if options["base_limit"] is not None and "ours" not in names and not options["also"]:
        raise UsageProblem("--base-limit is for the method ours: add --method ours, or leave it away")
    return Setup(tuple(names), model, options["baselines"], options["also"])


def collect(items: "Sequence[Item]", setup: "Setup", table: "RowFile", jobs: int) -> "list[Row]":
    """Rows of all items, in the order of the items whatever the processes did; a progress bar meanwhile."""
    from rich.console import Console
    from rich.progress import track

    from m2s.evaluate.rows import ITEM
    from m2s.evaluate.work import evaluate

    done = evaluate(items, setup, table, jobs)
    found = list(track(done, "evaluating", total=len(items), console=Console(stderr=True)))
    place = {item.name: index for index, item in enumerate(items)}
    return [row for rows in sorted(found, key=lambda rows: place[str(rows[0][ITEM])]) for row in rows]


def source(atlas: Path | None, label_maps: Path | None) -> tuple[Path, bool]:
    """Folder of the hearts, and whether it holds the paper's data set instead of the atlas.

    Raises:
        UsageProblem: both or neither are given.
    """
    if label_maps is not None and atlas is None:
        return label_maps, True
    if atlas is not None and label_maps is None:
        return atlas, False
    raise UsageProblem("give one of --atlas FOLDER and --label-maps FOLDER")


def check_law(law: str) -> None:
    """Refuse a law that nobody knows before anything is opened."""
    import numpy as np

    from m2s.evaluate.laws import motion_law
    from m2s_runtime.grid import MASK_GRID

    motion_law(law, np.ones(MASK_GRID, np.bool_))
