"""`m2s-run`: label maps in, meshes out."""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from m2s_runtime.console import tell
from m2s_runtime.errors import (
    BUG,
    INTERRUPTED,
    OK,
    SOME_FAILED,
    TERMINATED,
    CaseError,
    OutputError,
    Stop,
    UsageProblem,
    exit_codes,
)
from m2s_runtime.limits import Limits
from m2s_runtime.machine import one_blas_thread
from m2s_runtime.options import ENGINES, FORMATS, MOST_SAMPLES, PRECISIONS, QUALITIES, SAVES, SPACES, Options, Setup
from m2s_runtime.quiet import quiet_libraries
from m2s_runtime.terminable import terminable
from m2s_runtime.text import clean

if TYPE_CHECKING:
    from m2s_runtime.session import Session

T = TypeVar("T", Options, Setup)


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


class BatchSize(click.ParamType[int | None]):
    """A number of cases from 1 on; None is `auto`."""

    name = "auto|N"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Check what was typed."""
        word = str(value).strip().lower()
        return None if word == "auto" else click.types.convert_type(click.IntRange(1, MOST_SAMPLES))(word, param, ctx)


class Folder(click.Path):
    """A folder with a name; without one `Path` would take the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Refuse what is empty."""
        if not str(value):
            self.fail("it is empty (an unset variable?): name a folder", param, ctx)
        return super().convert(value, param, ctx)


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - click's signature
    if asked and not context.resilient_parsing:
        from m2s_runtime.versions import version

        click.echo(f"m2s-run {version()}")
        context.exit()


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=exit_codes(SOME_FAILED, TERMINATED),
)
@click.argument("inputs", nargs=-1, metavar="INPUT…")
@click.option("-o", "--out", required=True, type=Folder(path_type=Path), help="Folder for meshes and tables.")
@click.option("--model", help="Bundle folder or name.  [default: $M2S_HOME, then the installed one]")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True)
@click.option(
    "--engine-dir", type=click.Path(path_type=Path), help="Folder of built TensorRT engines.  [default: your cache]"
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda:N,…",
    help="Several GPUs, separated by commas, get a process each.",
)
@click.option(
    "--labels",
    default="auto",
    show_default=True,
    metavar="auto|acdc|ukbb|mnms|label_maps|binary|myo=N",
    help="What the label values mean; auto takes the label that rings another.",
)
@click.option("--frames", default="all", show_default=True, metavar="all|ed,es|LIST", help="Frames of 4-D input.")
@click.option(
    "--share-shifts/--own-shifts",
    default=True,
    help="Whether the frames of a cine get the same slice shifts (default: they do, a slice being one breath-hold).",
)
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps.  [default: the bundle's]")
@click.option(
    "--quality",
    type=click.Choice(QUALITIES),
    help="exact: ten denoising steps as in the paper; fast: the bundle's own choice of fewer.  [default: the bundle's]",
)
@click.option(
    "--exact",
    is_flag=True,
    help="Where the compiled distance kernel could not be built: exact distances by libigl, in seconds a heart.",
)
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
    "--base-limit",
    type=float,
    metavar="MM",
    help="End the wall at most so far beyond its most basal slice, for stacks that begin at the base.  [default: "
    "where the networks end it]",
)
@click.option(
    "--format", "formats", type=NameList(FORMATS), default="ply", show_default=True, metavar=",".join(FORMATS)
)
@click.option(
    "--space", type=click.Choice(SPACES), default="lps", show_default=True, help="World axes of the mesh files."
)
@click.option("--save", type=NameList(SAVES), default="", metavar=",".join(SAVES), help="Keep intermediate results.")
@click.option("--anonymise", is_flag=True, help="Keep names and paths of inputs out of all outputs.")
@click.option("--report/--no-report", default=True, help="Whether to write OUT/report.html (default: it is written).")
@click.option("--report-only", is_flag=True, help="Only write OUT/report.html anew, from what OUT holds; no INPUT.")
@click.option(
    "--apply-shifts",
    type=click.Path(path_type=Path),
    metavar="IMAGE",
    help="Re-align this image or cine instead; INPUT is what --save shifts wrote for its label map.",
)
@click.option("--resume", is_flag=True, help="Skip cases that are complete, as happens anyway.")
@click.option("--overwrite", is_flag=True, help="Redo cases that are complete.")
@click.option("--retry-failed", is_flag=True, help="Do only what failed in an earlier run.")
@click.option("--dry-run", is_flag=True, help="Check inputs and output folder, say what would run; write nothing.")
@click.option(
    "--jobs",
    type=click.IntRange(0, 1024),
    help="Processes on the CPU; 0 does everything in one, which a crash ends.  [default: as many as there are cores, "
    "memory and cases for]",
)
@click.option(
    "--threads",
    type=click.IntRange(0),
    default=0,
    help="CPU threads of each process.  [default: 1, whatever the machine: their number can change the last digits]",
)
@click.option(
    "--batch-size",
    type=BatchSize(),
    metavar="auto|N",
    help="Hearts that a GPU computes at once.  [default: auto: 16, on the CPU 1]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="A case that takes longer has failed; 0 waits for ever, as --jobs 0 does.",
)
@click.option(
    "--cluster",
    metavar="ray[=ADDRESS]",
    help="Run on a Ray cluster: HOST:PORT, auto or local.  [default ADDRESS: $RAY_ADDRESS, then local]",
)
@click.option("--shard", default="1/1", metavar="K/N|auto", help="Do one part of N; auto asks SLURM's job array.")
@click.option("--log-json", type=click.Path(path_type=Path), help="Append a JSON line for each case to this file.")
@click.option(
    "--max-voxels", type=click.IntRange(1), default=Limits.voxels, show_default=True, help="Larger input is refused."
)
@click.option(
    "--max-axis", type=click.IntRange(1), default=Limits.axis, show_default=True, help="Voxels along x, y, z."
)
@click.option("--max-frames", type=click.IntRange(1), default=Limits.frames, show_default=True, help="Of a cine.")
@click.option("--max-file-mib", type=click.IntRange(1), default=Limits.file_mib, show_default=True, help="On disk.")
@click.option("-q", "--quiet", is_flag=True, help="Show failures only.")
@click.option("-v", "--verbose", is_flag=True, help="Show decisions, stage times and traces.")
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version.")
def command(**given: Any) -> int:  # noqa: ANN401 - click passes what is declared above
    """Turn short-axis label maps (.nii, .nii.gz, .hdr/.img: files, folders or quoted patterns) into closed surfaces.

    Meshes go to OUT/<case>/, a table of all cases to OUT/cases.csv, the run's particulars to OUT/run.json, pictures of
    all cases to OUT/report.html. Cases that are complete are skipped, so the same command resumes an interrupted run.
    """
    if given["quiet"] and given["verbose"]:
        raise UsageProblem("-q and -v contradict each other")
    if given["resume"] and given["overwrite"]:
        raise UsageProblem("--resume and --overwrite contradict each other")
    if given["apply_shifts"]:
        if given["dry_run"] or given["anonymise"]:
            raise UsageProblem(
                "--apply-shifts writes IMAGE anew, by its name: --dry-run and --anonymise are not for it"
            )
        return _realign(given["inputs"], given["apply_shifts"], given["out"], overwrite=given["overwrite"])
    if given["report_only"] and not given["report"]:
        raise UsageProblem("--report-only and --no-report contradict each other")
    if given["report_only"]:
        return _render(given["inputs"], given["out"])
    if not given["inputs"]:
        raise UsageProblem("INPUT… is missing: name label maps, folders or quoted patterns")
    from m2s_runtime.session import Session

    given["labels"] = given["labels"].strip().lower()
    given["formats"] = given["formats"] or ("ply",)
    given["verbosity"] = given["verbose"] - given["quiet"]
    given["limits"] = Limits(given["max_voxels"], given["max_axis"], given["max_frames"], given["max_file_mib"])
    with Session(given["inputs"], given["out"], _chosen(Options, given), _chosen(Setup, given)) as session:
        session.open()
        return _run(session)


def _realign(documents: Sequence[str], image: Path, out: Path, *, overwrite: bool) -> int:
    from m2s_runtime.apply_shifts import apply_shifts

    try:
        click.echo(str(apply_shifts([Path(name) for name in documents], image, out, overwrite=overwrite)))
    except CaseError as error:
        _complain(str(error))
        return SOME_FAILED
    return OK


def _render(inputs: Sequence[str], out: Path) -> int:
    from m2s_runtime.report.pages import write_report

    if inputs:
        raise UsageProblem("--report-only takes no INPUT: it shows what --out holds")
    if not out.is_dir():
        raise UsageProblem(f"--report-only: --out {out} is no folder; name the folder of an earlier run")
    click.echo(str(write_report(out)))
    return OK


def _chosen(kind: type[T], given: Mapping[str, Any]) -> T:
    """A dataclass from the options that have the names of its fields."""
    return kind(**{name: given[name] for name in kind.__dataclass_fields__ if name in given})


def _run(session: "Session") -> int:
    """Run the session; its tables are written whatever happens, and a second trouble never hides the first."""
    code = BUG
    try:
        code = SOME_FAILED if session.run() else OK
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit:
        code = TERMINATED
    except Stop as error:
        code = error.exit_code
        raise
    finally:
        try:
            session.finish(code)
        except OutputError:
            if code in (OK, SOME_FAILED):
                raise
    return code


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become one line on stderr.

    Args:
        arguments: without the program's name; None takes those of the process.
    """
    one_blas_thread()
    try:
        with quiet_libraries(tell), terminable():
            code = command.main(args=arguments, prog_name="m2s-run", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except click.ClickException as error:
        with suppress(OSError):  # nobody reads it
            error.show()
        return error.exit_code
    except Stop as error:
        _complain(str(error))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SystemExit as error:  # SIGTERM, or click found nobody to read --help
        return error.code if isinstance(error.code, int) else TERMINATED
    except Exception:  # noqa: BLE001 - the last line of defence: a bug is reported as one
        tell(traceback.format_exc().rstrip())
        _complain("this is a bug; please report it with the lines above")
        return BUG


def main() -> NoReturn:
    """Entry point of `m2s-run`."""
    _occupy_standard_streams()
    sys.exit(run())


def _occupy_standard_streams() -> None:
    """Where the caller closed one (`2>&-`), no output file or pipe may get its number: libraries write to it."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def _complain(message: str) -> None:
    tell(f"m2s-run: error: {clean(message)}")
