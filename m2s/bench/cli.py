"""`m2s-bench`: how fast it is here, part by part, and against what."""

import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from m2s.finite import Finite
from m2s_runtime.errors import BUG, INTERRUPTED, OK, SOME_FAILED, OutputError, Stop, UsageProblem, exit_codes
from m2s_runtime.machine import one_blas_thread
from m2s_runtime.text import clean

if TYPE_CHECKING:
    from m2s.bench.lines import Setup
    from m2s.bench.result import Result
    from m2s_runtime.inputs import Found

# Names that `--help` cannot wait for the modules of; a test compares them.
CARDS: Final = ("rtx4090", "rtx3090", "rtx5090", "a100", "h100")
PARTS: Final = ("peaks", "networks", "hearts", "whole-run", "first-run")


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=exit_codes(SOME_FAILED),
)
@click.argument("inputs", nargs=-1, metavar="[INPUT…]")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for result.json, result.md and stages.png.")
@click.option(
    "--compare",
    default="auto",
    show_default=True,
    metavar="LINE,…",
    help="auto, onnx, openvino, trt, torch-eager, torch-compile, each [:PRECISION][@DEVICE], or reference[:STEPS]; the "
    "others are compared with the first.",
)
@click.option("--skip-missing", is_flag=True, help="Go on without lines that cannot be had here.")
@click.option(
    "--predict", type=click.Choice(CARDS), help="Estimate a card by its roofline; alone, nothing is measured."
)
@click.option("--model", help="Bundle folder or name.  [default: $M2S_HOME, then the installed one]")
@click.option(
    "--run",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Training run with the weights for PyTorch lines.  [default: those in the bundle's graphs]",
)
@click.option("--labels", default="auto", show_default=True, help="Label scheme, as in m2s-run.")
@click.option("--limit", type=click.IntRange(1), help="Only so many files, spread over those found.")
@click.option(
    "--phantoms", type=click.IntRange(1), default=8, show_default=True, help="Hearts where no INPUT is given."
)
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Times that each heart is done.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps.  [default: the bundle's]")
@click.option(
    "--threads", type=click.IntRange(0), default=0, show_default=True, help="CPU threads of a line; 0: all cores."
)
@click.option("--jobs", type=click.IntRange(0), help="Processes of the whole command.  [default: m2s-run's own]")
@click.option("--batch-sizes", default="1,4", show_default=True, metavar="N,…", help="Rows of a network call.")
@click.option("--seconds", type=Finite(0), default=2.0, show_default=True, help="For each graph and batch size.")
@click.option("--parts", default=",".join(PARTS), show_default=True, metavar="PART,…", help="What to measure.")
@click.option("--in-turn", is_flag=True, help="A process for each line, where one cannot hold them all.")
@click.option("--engine-dir", type=click.Path(path_type=Path), help="Folder of built TensorRT engines.")
def command(inputs: tuple[str, ...], **given: Any) -> int:  # noqa: ANN401 - click passes what is declared above
    """Measure m2s-run and its parts on label maps INPUT (files, folders, patterns) or on procedural hearts.

    The result goes to stdout as Markdown. It holds no names of files, users or machines.
    """
    lone = given["predict"] and not inputs and _unset("compare")
    if given["out"]:
        _make_folder(given["out"])  # before minutes of measuring
    text, result, code = _predicted(given) if given["predict"] else "", None, OK
    if not lone:
        result, code = _measured(inputs, given)
        from m2s.bench.tables import markdown

        text = markdown(result) + ("\n" + text if text else "")
    click.echo(text.rstrip())
    if given["out"]:
        _write(given["out"], text, result)
    return code


def _measured(inputs: tuple[str, ...], given: Mapping[str, Any]) -> "tuple[Result, int]":
    from m2s.bench.lines import parse
    from m2s.bench.run import Plan, benchmark
    from m2s_runtime.labels import check_scheme

    labels = given["labels"].strip().lower()
    check_scheme(labels)
    specs, parts, sizes = parse(given["compare"]), _parts(given["parts"]), _sizes(given["batch_sizes"])
    with tempfile.TemporaryDirectory(prefix="m2s-bench-") as name:
        found = _hearts(inputs, given, Path(name))
        for problem in found.problems:
            _say(f"{problem.name}: {problem.message}")
        setup = _setup(given, labels, found)
        hearts = "files" if inputs else "phantoms"
        plan = Plan(
            specs, setup, hearts, parts, given["rounds"], sizes, given["seconds"], given["jobs"], given["in_turn"],
            given["skip_missing"],
        )  # fmt: skip
        result = benchmark(plan, Path(name), _say)
    return result, SOME_FAILED if result.excluded or found.problems else OK


def _setup(given: Mapping[str, Any], labels: str, found: "Found") -> "Setup":
    from m2s.bench.lines import Setup

    return Setup(
        given["model"], labels, given["threads"], given["steps"], given["run"], given["engine_dir"],
        tuple(found.sources),
    )  # fmt: skip


def _hearts(inputs: tuple[str, ...], given: Mapping[str, Any], folder: Path) -> "Found":
    from m2s.bench.hearts import find_hearts, write_phantoms

    if not inputs:
        write_phantoms(folder / "phantoms", given["phantoms"])
    return find_hearts(inputs or (str(folder / "phantoms"),), folder / "none", given["limit"])


def _predicted(given: Mapping[str, Any]) -> str:
    """The estimates for the bundle and for preset `paper`."""
    from m2s.bench.cards import CARDS, PAPER, predict
    from m2s.bench.tables import prediction_table
    from m2s.bench.work import count_work
    from m2s_runtime.bundle import load_bundle
    from m2s_runtime.ddim import DEFAULT_STEPS

    bundle, card = load_bundle(given["model"]), CARDS[given["predict"]]
    steps = given["steps"] or bundle.manifest.steps
    wanted = {f"bundle {bundle.name}": (count_work(bundle), steps)}
    if bundle.manifest.preset != "paper":
        wanted["preset paper"] = (PAPER, DEFAULT_STEPS)
    made = [
        predict(card, name, work, steps, precision)
        for name, (work, steps) in wanted.items()
        for precision in ("float16", "float32")
    ]
    return "\n\n".join(map(prediction_table, made)) + "\n"


def _write(out: Path, text: str, result: "Result | None") -> None:
    from m2s.bench.picture import draw
    from m2s_runtime.atomic import write_text
    from m2s_runtime.strict_json import dumps

    write_text(out / "result.md", text)
    if not result:
        return
    write_text(out / "result.json", dumps(result))
    if not any(line.hearts for line in result.lines):
        return
    try:
        draw(result.lines, out / "stages.png")
    except ImportError as error:
        _say(f"no picture: matplotlib is not installed ({error}); run `pip install matplotlib`")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(f"--out {out}: not usable as a folder ({error.strerror})") from error


def _parts(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if strange := [word for word in words if word not in PARTS] or not words:
        raise UsageProblem(f"--parts {strange if words else text!r}: choose from {', '.join(PARTS)}")
    return words


def _sizes(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and 1 <= int(word) <= 1024 for word in words):
        raise UsageProblem(f"--batch-sizes {text}: give numbers from 1 to 1024 with commas between")
    return tuple(dict.fromkeys(map(int, words)))


def _unset(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.DEFAULT


def _say(text: str) -> None:
    click.echo(f"m2s-bench: {clean(text)}", err=True)


def main() -> NoReturn:
    """Entry point of `m2s-bench`: errors raised on purpose become one line and their exit code."""
    one_blas_thread()  # as m2s-run does
    try:
        code = command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        code = INTERRUPTED
    except Stop as error:
        _say(f"error: {error}")
        code = error.exit_code
    except Exception:  # noqa: BLE001 - the last line of defence: a bug is reported as one
        click.echo(traceback.format_exc().rstrip(), err=True)
        _say("this is a bug; please report it with the lines above")
        code = BUG
    sys.exit(code if isinstance(code, int) else OK)
