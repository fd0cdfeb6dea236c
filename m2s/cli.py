"""Commands of the training environment."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypedDict, TypeVar, Unpack

import click

from m2s_runtime.errors import CaseError, M2SError, Stop, UsageProblem

# `METHODS` of m2s.evaluate.methods, whose import --help would have to wait for; a test compares them.
METHOD_NAMES = ("ours", "mcsr", "decode-zc", "nni", "shape-based", "shape-based-line", "shape-based-uncorrected")
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)

T = TypeVar("T")

if TYPE_CHECKING:
    from m2s.evaluate.methods import Method
    from m2s.evaluate.networks import ModelOptions
    from m2s.evaluate.scores import Row


class Options(TypedDict):
    """What `_shared` adds to a command."""

    model: str | None
    engine: str
    device: str
    threads: int
    steps: int | None
    seed: int
    out: Path | None


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


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    """Options that every row of figures takes."""
    options = [
        click.option("--method", "names", multiple=True, type=click.Choice(METHOD_NAMES), help="May be repeated."),
        click.option("--model", default=None, help="Bundle: a folder or the name of an installed one."),
        click.option("--engine", default="auto", show_default=True, help="Inference engine."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda:N."),
        click.option("--steps", type=click.IntRange(1), default=None, help="DDIM steps instead of the bundle's."),
        click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of motion and sampling."),
        click.option("--out", type=FILE, default=None, help="CSV with one row a subject, draw and method."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=_Group)
def evaluate() -> None:
    """Reproduce the figures of the README; a Markdown table goes to stdout."""


@evaluate.command()
@click.option("--atlas", type=FOLDER, required=True, help="Folder of the CAP MESA shape atlas.")
@click.option("--draws", type=click.IntRange(1), default=12, show_default=True, help="Stacks a heart.")
@click.option("--limit", type=click.IntRange(1), default=None, help="Only this many hearts, spread over the cohort.")
@click.option("--sign", type=click.Choice(["random", "positive"]), default="random", show_default=True)
@_shared
def simulation(
    atlas: Path, draws: int, limit: int | None, sign: str, names: tuple[str, ...], **options: Unpack[Options]
) -> None:
    """Hearts of the validation cohort, acquired as slices that moved."""
    from dataclasses import replace

    from m2s.data.atlas import validation_hearts
    from m2s.data.simulate import PAPER
    from m2s.evaluate import simulation as rows

    law = replace(PAPER, sign=sign)
    hearts = list(validation_hearts(atlas))
    if limit is not None:
        hearts = _spread(hearts, limit)
    methods = _methods(names, options)
    seed = options["seed"]
    produced = rows.evaluate_cohort(hearts, methods, draws=draws, seed=seed, law=law)
    _report(produced, len(hearts) * draws * len(methods), rows.groups, options["out"])


@evaluate.command()
@click.option(
    "--data", type=FOLDER, required=True, help="Folder of short-axis label maps, slices along the third axis."
)
@click.option("--labels", default="acdc", show_default=True, help="Label scheme, as in m2s-run.")
@click.option("--limit", type=click.IntRange(1), default=None, help="Only this many files, spread over the folder.")
@_shared
def acdc(data: Path, labels: str, limit: int | None, names: tuple[str, ...], **options: Unpack[Options]) -> None:
    """Real stacks: slices held back, slices given, topology."""
    from m2s.evaluate import acdc as rows

    paths = rows.find_stacks(data)
    if limit is not None:
        paths = _spread(paths, limit)
    methods = _methods(names, options)
    produced = (row for path in paths for row in rows.evaluate_stack(path, methods, labels))
    _report(produced, len(paths) * len(methods), rows.groups, options["out"], rows.summary)


@evaluate.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with the files of subject 1081.")
@click.option("--draws", type=click.IntRange(1), default=12, show_default=True, help="Own simulations.")
@_shared
def subject1081(data: Path, draws: int, names: tuple[str, ...], **options: Unpack[Options]) -> None:
    """A subject of the paper's data set: own simulation and the two given stacks."""
    from m2s.evaluate import subject1081 as rows

    methods = _methods(names, options)
    produced = rows.evaluate_subject(data, methods, draws=draws, seed=options["seed"])
    _report(produced, len(methods) * (draws + 2) + 2, rows.groups, options["out"])


def _spread(items: list[T], count: int) -> list[T]:
    """`count` items from the first to the last, as evenly as it goes: neither phase is left out."""
    last, gaps = len(items) - 1, max(count - 1, 1)
    return [items[round(i * last / gaps)] for i in range(count)] if count < len(items) else items


def _methods(names: tuple[str, ...], options: "Options") -> "dict[str, Method]":
    """Build what was asked for; the bundle is opened only when a network is among it."""
    from m2s.evaluate.methods import NETWORK_METHODS, classical_method
    from m2s.evaluate.networks import network_methods

    names = names or ("ours",)
    networks = network_methods([n for n in names if n in NETWORK_METHODS], _model(options))
    # First the one whose run the other networks share: its time is then that of the whole method.
    ordered = sorted(names, key=lambda name: name != "ours")
    return {n: networks[n] if n in networks else classical_method(n) for n in ordered}


def _model(options: Options) -> "ModelOptions":
    return {
        "model": options["model"],
        "engine": options["engine"],
        "device": options["device"],
        "threads": options["threads"],
        "steps": options["steps"],
        "seed": options["seed"],
    }


def _report(
    produced: "Iterable[Row]",
    total: int,
    groups: "Callable[[list[Row]], dict[str, list[Row]]]",
    out: Path | None,
    summary: "Callable[[list[Row]], str] | None" = None,
) -> None:
    from rich.console import Console
    from rich.progress import track

    from m2s.evaluate.scores import markdown, write_csv

    rows = list(track(produced, "evaluating", total=total, console=Console(stderr=True)))
    if out is not None:
        write_csv(out, rows)
    click.echo(markdown(groups(rows)))
    if summary is not None:
        click.echo(summary(rows))
