"""`m2s-run`: label maps in, meshes out."""

import signal
import sys
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from m2s_runtime.errors import OutputError, Stop, UsageProblem
from m2s_runtime.options import FORMATS, MOST_SAMPLES, SAVES, SPACES, Options
from m2s_runtime.text import clean

if TYPE_CHECKING:
    from m2s_runtime.session import Session

OK: Final = 0
BUG: Final = 1
SOME_FAILED: Final = 8
INTERRUPTED: Final = 130
TERMINATED: Final = 143


class NameList(click.ParamType[tuple[str, ...]]):
    """Names from a fixed set, separated by commas; repeats count once."""

    name = "list"

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Split and check what was typed."""
        words = dict.fromkeys(word.strip().lower() for word in str(value).split(",") if word.strip())
        for word in words:
            if word not in self._names:
                self.fail(f"{word!r} is not one of {', '.join(self._names)}", param, ctx)
        return tuple(words)


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - click's signature
    if asked and not context.resilient_parsing:
        from m2s_runtime.session import version

        click.echo(f"m2s-run {version()}")
        context.exit()


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT…")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for meshes and tables.")
@click.option("--model", help="Bundle folder or name.  [default: $M2S_HOME, then the installed one]")
@click.option("--engine", type=click.Choice(["auto", "onnx"]), default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda:N")
@click.option(
    "--labels",
    default="auto",
    show_default=True,
    metavar="auto|acdc|ukbb|mnms|label_maps|binary|myo=N",
    help="What the label values mean; auto takes the label that rings another.",
)
@click.option("--frames", default="all", show_default=True, metavar="all|ed,es|LIST", help="Frames of 4-D input.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps.  [default: the bundle's]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--samples",
    type=click.IntRange(1, MOST_SAMPLES),
    default=1,
    show_default=True,
    help="Posterior samples; the surface is that of their mean, PLY and VTP files get their spread in mm.",
)
@click.option(
    "--refine",
    type=click.IntRange(0, 20),
    default=0,
    show_default=True,
    help="Times to re-register the slices to the surface and run again.",
)
@click.option(
    "--format", "formats", type=NameList(FORMATS), default="ply", show_default=True, metavar=",".join(FORMATS)
)
@click.option(
    "--space", type=click.Choice(SPACES), default="lps", show_default=True, help="World axes of the mesh files."
)
@click.option("--save", type=NameList(SAVES), default="", metavar=",".join(SAVES), help="Keep intermediate results.")
@click.option("--overwrite", is_flag=True, help="Redo cases that are complete.")
@click.option("--dry-run", is_flag=True, help="Check every input and say what would run; write nothing.")
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="CPU threads; 0 means all.")
@click.option("-q", "--quiet", is_flag=True, help="Show failures only.")
@click.option("-v", "--verbose", is_flag=True, help="Show decisions, stage times and traces.")
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version.")
def command(**given: Any) -> int:  # noqa: ANN401 - click passes what is declared above
    """Turn short-axis label maps (.nii, .nii.gz: files, folders or quoted patterns) into closed surfaces.

    Meshes go to OUT/<case>/, a table of all cases to OUT/cases.csv, the run's particulars to OUT/run.json. Cases that
    are complete are skipped, so the same command resumes an interrupted run.

    Exit codes: 0 ok, 1 bug, 2 usage, 3 no inputs, 4 bundle, 5 device or engine, 6 output, 8 some cases failed,
    130 interrupted, 143 terminated.
    """
    if given["quiet"] and given["verbose"]:
        raise UsageProblem("-q and -v contradict each other")
    from m2s_runtime.session import Session

    options = Options(
        given["labels"].strip().lower(),
        given["frames"],
        given["formats"] or ("ply",),
        given["space"],
        given["save"],
        given["steps"],
        given["seed"],
        given["overwrite"],
        given["samples"],
        given["refine"],
    )
    session = Session(given["inputs"], given["out"], options, verbosity=given["verbose"] - given["quiet"])
    session.open(given["model"], given["engine"], given["device"], given["threads"])
    return _run(session, dry_run=given["dry_run"])


def _run(session: "Session", *, dry_run: bool) -> int:
    """Run the session; its tables are written whatever happens, and a second trouble never hides the first."""
    code = BUG
    try:
        code = SOME_FAILED if session.run(dry_run=dry_run) else OK
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit:
        code = TERMINATED
    except Stop as error:
        code = error.exit_code
        raise
    finally:
        if not dry_run:
            try:
                session.close(code)
            except OutputError:
                if code in (OK, SOME_FAILED):
                    raise
    return code


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become one line on stderr.

    Args:
        arguments: without the program's name; None takes those of the process.
    """
    try:
        with _quiet_libraries(), _terminable():
            code = command.main(args=arguments, prog_name="m2s-run", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Stop as error:
        _complain(str(error))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SystemExit:
        return TERMINATED
    except Exception:  # noqa: BLE001 - the last line of defence: a bug is reported as one
        sys.stderr.write(traceback.format_exc())
        _complain("this is a bug; please report it with the lines above")
        return BUG


def main() -> NoReturn:
    """Entry point of `m2s-run`."""
    sys.exit(run())


def _complain(message: str) -> None:
    click.echo(f"m2s-run: error: {clean(message)}", err=True)


@contextmanager
def _quiet_libraries() -> Generator[None]:
    """One line, without source code, for each distinct warning of a library."""
    import logging

    def show(message: Warning | str, *_: object, **__: object) -> None:
        click.echo(f"m2s-run: warning: {clean(str(message))}", err=True)

    logging.getLogger("nibabel").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def _terminable() -> Generator[None]:
    """Let SIGTERM, as batch systems send it, end the run in order: tables written, exit code 143."""

    def stop(*_: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: signals are the caller's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
