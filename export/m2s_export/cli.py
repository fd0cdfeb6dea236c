"""`m2s-export`: a training run in, a bundle or TensorRT engines out; and bundles checked again."""

import logging
import math
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from m2s.finite import Finite
from m2s_runtime.bundle import MANIFEST, Bundle, load_bundle
from m2s_runtime.errors import BUG, INTERRUPTED, BundleError, EngineError, Stop, UsageProblem, exit_codes
from m2s_runtime.expected_dice import DiceModel
from m2s_runtime.shift_error import Deviations
from m2s_runtime.text import clean

_TARGETS: Final = ("current", "sm86", "sm89", "sm120")

_BUNDLE: Final = {
    "source", "out", "engine", "precision", "overwrite", "store", "data", "data_licence", "licence", "notes",
    "temperature", "steps", "csdg_share", "spread_scale", "shift_error", "flag_limit", "fitted", "surfaces",
}  # fmt: skip
_TAKES: Final = {
    "--import-monai-generative": {"imported", "out", "preset", "scale_factor", "overwrite"},
    "--check": {"check", "source", "record", "surfaces", "engine_dir"},
    "--engine trt": _BUNDLE | {"target", "engine_dir"},
    "--onto": {"onto"} | _BUNDLE - {"precision", "store"},
    "--engine onnx": _BUNDLE,
}
"""What is to be done -> the parameters that mean something then."""
_USUAL: Final = ("--engine onnx", "--onto")
"""What nobody has to be pointed to."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=exit_codes())
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder of the bundle, e.g. models/mine.")
@click.option(
    "--engine",
    type=click.Choice(["onnx", "trt"]),
    default="onnx",
    show_default=True,
    help="onnx makes a bundle, trt TensorRT engines of one.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="float16 adds graphs that compute in it to the bundle, and builds engines from these.",
)
@click.option(
    "--target",
    type=click.Choice(_TARGETS),
    default="current",
    show_default=True,
    help="GPU to build engines for: the one here, or RTX 30, 40, 50 ahead of time.",
)
@click.option("--engine-dir", type=click.Path(path_type=Path), help="Cache of engines.  [default: the user's own]")
@click.option(
    "--store",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Width of the weights on disk.",
)
@click.option("--data", help="What it was trained on, for manifest and card.  [default: as the checkpoints say]")
@click.option("--data-licence", help="Licence of that data.  [default: as the checkpoints say]")
@click.option("--licence", help='Licence of the weights.  [default: as the checkpoints say, or "not stated"]')
@click.option(
    "--notes",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Markdown that the model card begins with: accuracy, limits.",
)
@click.option(
    "--temperature",
    type=Finite(0, 1),
    default=1.0,
    show_default=True,
    help="Factor on the noise that a single sample starts from.",
)
@click.option(
    "--steps", type=click.IntRange(1, 1000), default=10, show_default=True, help="DDIM steps of a single sample."
)
@click.option(
    "--csdg-share",
    type=Finite(0, 1),
    help="Weight of the C-SDG in the surface beside what the diffusion draws; --spread-scale has to be fitted anew.  "
    "[default: as the preset says]",
)
@click.option(
    "--spread-scale",
    type=Finite(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Calibration of the spread, as m2s-eval spread finds it.",
)
@click.option(
    "--shift-error",
    default="0,0,0,0,0",
    metavar="ALONE,TILT,BEND,THIRD,FOURTH",
    help="How wrong the slice shifts are in mm, as m2s-eval spread finds it; samples then differ by it too.",
)
@click.option("--flag-limit", multiple=True, metavar="NAME=VALUE", help="Limit of a flag; may be repeated.")
@click.option(
    "--fitted",
    type=click.Path(path_type=Path),
    help="What Dice to expect of a case, and below which it is doubtful: the file of m2s-eval flags --fit.",
)
@click.option(
    "--surfaces",
    type=click.IntRange(0),
    help="Procedural hearts whose surfaces are compared; 0 for networks that know none yet.  "
    "[default: 2; 20 with --check and SOURCE or --record]",
)
@click.option(
    "--onto",
    metavar="BUNDLE",
    help="Make a bundle of this one and the MCSR-Net of SOURCE, as of a run that fine-tuned it; settings stay its own "
    "unless told.",
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle, checkpoint or engine that is there.")
@click.option(
    "--check",
    metavar="BUNDLE",
    help="Compare a bundle with the training run SOURCE, or without one with its graphs evaluated in NumPy.",
)
@click.option("--record", is_flag=True, help="With --check: note in the manifest which engines passed.")
@click.option(
    "--import-monai-generative",
    "imported",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Make weights of the old package's DiffusionModelUNet the diffusion stage of the run --out.",
)
@click.option("--preset", default="paper", show_default=True, help="Of the imported weights.")
@click.option(
    "--scale-factor",
    type=Finite(0, min_open=True),
    default=1.0,
    show_default=True,
    help="What the latents of the imported weights were multiplied by.",
)
def export(source: Path | None, out: Path | None, engine: str, **given: Any) -> None:  # noqa: ANN401 - declared above
    """Turn the training run SOURCE into a model bundle.

    Every graph is compared with PyTorch first; a bundle that deviates is not published. With --engine trt, turn
    the bundle SOURCE (default: the installed one) into TensorRT engines instead. With --check, judge a bundle.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("m2s_export").setLevel(logging.INFO)
    out = out.resolve() if out else None
    task = f"--engine {engine}"
    for option, name in (("--onto", "onto"), ("--check", "check"), ("--import-monai-generative", "imported")):
        task = option if given[name] is not None else task
    _refuse_strays(task)
    if task == "--onto" and engine == "trt":
        raise UsageProblem("--onto makes a bundle: leave --engine trt out, then give it the new bundle")
    if task == "--import-monai-generative":
        import_weights(given["imported"], _wanted(out, "the run that the weights are for"), given)
    elif task == "--check":
        check(given["check"], source, given)
    elif engine == "trt":
        build(source, out, given)
    else:
        if source is None:
            raise UsageProblem("SOURCE is missing: give the folder of a training run, made by m2s-train")
        wanted = _wanted(out, "the folder of the bundle, e.g. models/mine")
        (export_onto if task == "--onto" else export_run)(source, wanted, given)


def _refuse_strays(task: str) -> None:
    """An option that would be left aside is most likely a misunderstanding."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if _on_command_line(name) and name not in _TAKES[task]:
            flag = parameter.opts[-1] if isinstance(parameter, click.Option) else name.upper()
            takers = [other for other, takes in _TAKES.items() if name in takes and other not in _USUAL]
            only = f", only with {' or '.join(takers)}" if takers else ""
            raise UsageProblem(f"{flag}: means nothing with {task}{only}")


def _on_command_line(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _wanted(out: Path | None, what: str) -> Path:
    if out is None:
        raise UsageProblem(f"--out is missing: give {what}")
    return out


def export_run(source: Path, out: Path, given: Mapping[str, Any]) -> None:
    """Makes a bundle of a training run; `given` are the options of `export`.

    Raises:
        Stop: of the kinds that `read_training_run` and `publish` raise, or an extra that is not installed.
    """
    if (source / MANIFEST).is_file():
        raise UsageProblem(f"{source}: a bundle already; add --engine trt to build engines of it")
    notes = _notes(given["notes"])
    try:
        from m2s_export.bundle import SURFACE_CASES, Plan, publish_run, refuse_existing
        from m2s_export.training_run import read_training_run
    except ImportError as error:
        raise _missing(error) from error
    refuse_existing(out, overwrite=given["overwrite"])
    limits, dice_model = _fitted(given, {})
    run = read_training_run(source)
    plan = Plan(
        out.name, run.training(given["data"], given["data_licence"]), given["licence"] or run.licence,
        run.step_range_mm, half=given["store"] == "float16", float16=given["precision"] == "float16",
        surface_cases=SURFACE_CASES if given["surfaces"] is None else given["surfaces"],
        temperature=given["temperature"], steps=given["steps"],
        spread_scale=given["spread_scale"], notes=notes, flag_limits=limits,
        shift_error_mm=_deviations(given["shift_error"]), csdg_share=given["csdg_share"], dice_model=dice_model,
    )  # fmt: skip
    _announce(publish_run(run, out, plan, overwrite=given["overwrite"]))


def export_onto(source: Path, out: Path, given: Mapping[str, Any]) -> None:
    """Makes a bundle of another one and a run's MCSR-Net; `given` are the options of `export`.

    Raises:
        Stop: of the kinds that `load_bundle` and `publish_onto` raise, or an extra that is not installed.
    """
    base = load_bundle(given["onto"])
    told = {name: value for name, value in given.items() if _on_command_line(name)}
    told |= {"notes": _notes(given["notes"])}
    if "shift_error" in told:
        told["shift_error_mm"] = _deviations(told["shift_error"])
    if "surfaces" in told:
        told["surface_cases"] = told["surfaces"]
    try:
        from m2s_export.bundle import refuse_existing
        from m2s_export.onto import publish_onto
    except ImportError as error:
        raise _missing(error) from error
    refuse_existing(out, overwrite=given["overwrite"])
    told["flag_limits"], dice_model = _fitted(given, base.manifest.flag_limits)
    told |= {"dice_model": dice_model} if dice_model else {}
    _announce(publish_onto(base, source, out, told, overwrite=given["overwrite"]))
    if not {"shift_error", "spread_scale"} <= told.keys():
        click.echo(f"spread calibrated as in {base.name}: m2s-eval spread finds its own --shift-error, --spread-scale")
    if base.manifest.dice_model and not dice_model:
        click.echo(f"Dice expected as of {base.name}: m2s-eval flags --fit FILE finds its own --fitted")


def _announce(bundle: Bundle) -> None:
    size = sum(entry.size for entry in bundle.manifest.files.values()) / 1e6
    parity = bundle.manifest.parity
    worst = max(parity.graphs.values(), key=lambda g: g.max_abs).max_abs
    p95 = "not compared" if parity.surface_p95_mm is None else f"{parity.surface_p95_mm:.2g} mm"
    click.echo(f"{bundle.path}: {size:.1f} MB, largest deviation {worst:.2g}, surfaces {p95}")


def _deviations(told: str) -> Deviations:
    try:
        alone, tilt, bend, third, fourth = found = [float(word) for word in told.split(",")]
    except ValueError as error:
        raise UsageProblem(f"--shift-error {told}: give five numbers in mm with commas between") from error
    if not all(0 <= mm < math.inf for mm in found):
        raise UsageProblem(f"--shift-error {told}: numbers are mm, none of them negative")
    return alone, tilt, bend, third, fourth


def build(source: Path | None, out: Path | None, given: Mapping[str, Any]) -> None:
    """Builds TensorRT engines of a bundle, of the default one without a source, or of a run exported to `out` first.

    Raises:
        Stop: of the kinds that `build_engines` and `export_run` raise.
    """
    from m2s_export.engines import build_engines

    if source is not None and source.is_dir() and not (source / MANIFEST).is_file():
        export_run(source, _wanted(out, "the folder of the bundle to make of the run first"), given)
        source = out
    elif out is not None:
        raise UsageProblem("--out: SOURCE is a bundle already; --engine-dir says where its engines go")
    bundle = load_bundle(source)
    rows: list[Sequence[str]] = []
    built = build_engines(bundle, given["target"], given["precision"], given["engine_dir"], anew=given["overwrite"])
    for row in built:
        seconds = "in the cache" if row.seconds is None else f"{row.seconds:.1f}"
        scratch = "" if row.scratch_mb is None else f"{row.scratch_mb:.0f}"
        rows.append(
            (row.graph, row.key.precision, row.key.arch, seconds, f"{row.megabytes:.1f}", str(row.layers), scratch)
        )
    _table(("graph", "precision", "for", "seconds", "MB", "layers", "scratch MB"), rows)


def check(wanted: str, run: Path | None, given: Mapping[str, Any]) -> None:
    """Judges a bundle and prints the findings.

    Raises:
        BundleError: a gate does not hold.
        Stop: of the kinds that `load_bundle` and `check_bundle` raise.
    """
    bundle = load_bundle(wanted)
    try:
        from m2s_export.recheck import check_bundle, record
    except ImportError as error:
        raise _missing(error) from error
    # Evaluating a graph in NumPy takes seconds: few hearts for a glance, many for what is recorded.
    usual = 20 if run or given["record"] else 2
    cases = usual if given["surfaces"] is None else given["surfaces"]
    verdict = check_bundle(bundle, run, cases, given["engine_dir"])
    click.echo(f"{bundle.path} compared with {verdict.reference}\n")
    marks = {True: "ok", False: "FAILED", None: ""}
    rows = [(f.what, f.engine, f.found, f.gate, marks[f.passed]) for f in verdict.findings]
    _table(("what", "engine", "largest deviation", "allowed", ""), rows)
    if given["record"]:
        record(bundle, verdict)
    if verdict.failed:
        raise BundleError(f"{bundle.path}: {verdict.failed} of {len(rows)} gates do not hold; export it anew")


def import_weights(file: Path, run: Path, given: Mapping[str, Any]) -> None:
    """Writes the diffusion checkpoint of a run.

    Raises:
        Stop: of the kinds that `import_denoiser` raises.
    """
    try:
        from m2s.nets.presets import PRESETS
        from m2s_export.old_monai import import_denoiser
    except ImportError as error:
        raise _missing(error) from error
    if given["preset"] not in PRESETS:
        raise UsageProblem(f"--preset {given['preset']}: choose {' or '.join(PRESETS)}")
    preset = PRESETS[given["preset"]]
    click.echo(import_denoiser(file, run, preset, given["scale_factor"], overwrite=given["overwrite"]))


def _missing(error: ImportError) -> EngineError:
    return EngineError(f'm2s-export needs PyTorch and onnx ({error}); run `pip install "mask2surface[export]"`')


def _notes(file: Path | None) -> str:
    try:
        return file.read_text(encoding="utf-8") if file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"--notes {file}: no text in UTF-8 ({error})") from error


def _fitted(given: Mapping[str, Any], limits: dict[str, float]) -> tuple[dict[str, float], DiceModel | None]:
    """Limits of flags with those of `--fitted` and `--flag-limit` over them, and the model of `--fitted`."""
    from m2s.evaluate.dice_model import read_fitted

    fitted = read_fitted(given["fitted"]) if given["fitted"] else None
    found = limits | (fitted.flag_limits if fitted else {}) | _limits(given["flag_limit"])
    return found, fitted.dice_model if fitted else None


def _limits(told: tuple[str, ...]) -> dict[str, float]:
    from m2s_runtime.flags import LIMITS, unknown

    try:
        limits = {name: float(value) for name, _, value in (limit.partition("=") for limit in told)}
    except ValueError as error:
        raise UsageProblem(f"--flag-limit takes NAME=VALUE, e.g. few_slices=5 ({error})") from error
    if not all(map(math.isfinite, limits.values())):
        raise UsageProblem(f"--flag-limit {' '.join(told)}: give finite numbers")
    if strange := unknown(limits):
        raise UsageProblem(f"--flag-limit {strange[0]}: not one of {', '.join(LIMITS)}")
    return limits


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Markdown, padded so that it also reads well as it is."""
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *rows)]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        click.echo(f"| {' | '.join(line)} |")


def main() -> None:
    """Entry point: errors raised on purpose become one line and their exit code."""
    try:
        export.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except Stop as error:
        click.echo(f"m2s-export: {clean(str(error))}", err=True)
        sys.exit(error.exit_code)
    except Exception:  # noqa: BLE001 - the last line of defence: a bug is reported as one
        click.echo(
            traceback.format_exc() + "m2s-export: this is a bug; please report it with the lines above", err=True
        )
        sys.exit(BUG)
