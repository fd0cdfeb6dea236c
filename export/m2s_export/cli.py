"""`m2s-export`: a training run in, a bundle out."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from m2s_runtime.errors import EngineError, Stop, UsageProblem

_INTERRUPTED: Final = 130


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of the bundle, e.g. models/mine."
)
@click.option("--engine", type=click.Choice(["onnx"]), default="onnx", show_default=True, expose_value=False)
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
    help="Markdown to append to the model card: accuracy, limits.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Factor on the noise that a single sample starts from.",
)
@click.option(
    "--steps", type=click.IntRange(1, 1000), default=10, show_default=True, help="DDIM steps of a single sample."
)
@click.option(
    "--spread-scale",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Calibration of the spread, as m2s-eval spread finds it.",
)
@click.option("--flag-limit", multiple=True, metavar="NAME=VALUE", help="Limit of a flag; may be repeated.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle already at --out.")
def export(source: Path, out: Path, store: str, data: str | None, data_licence: str | None, licence: str | None,
           notes: Path | None, temperature: float, steps: int, spread_scale: float, flag_limit: tuple[str, ...],
           *, overwrite: bool) -> None:  # fmt: skip
    """Turn the training run in the folder SOURCE into a model bundle.

    Every graph is compared with PyTorch first; a bundle that deviates is not published.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("m2s_export").setLevel(logging.INFO)
    text = notes.read_text(encoding="utf-8") if notes else ""
    half = store == "float16"
    sampling = {
        "temperature": temperature,
        "steps": steps,
        "spread_scale": spread_scale,
        "flag_limits": _limits(flag_limit),
    }
    export_run(source, out, half=half, data=data, data_licence=data_licence, licence=licence, notes=text,
               sampling=sampling, overwrite=overwrite)  # fmt: skip


def _limits(told: tuple[str, ...]) -> dict[str, float]:
    from m2s_runtime.flags import LIMITS, unknown

    try:
        limits = {name: float(value) for name, _, value in (limit.partition("=") for limit in told)}
    except ValueError as error:
        raise UsageProblem(f"--flag-limit takes NAME=VALUE, e.g. few_slices=5 ({error})") from error
    if strange := unknown(limits):
        raise UsageProblem(f"--flag-limit {strange[0]}: not one of {', '.join(LIMITS)}")
    return limits


def export_run(source: Path, out: Path, *, half: bool = True, data: str | None = None, data_licence: str | None = None,
               licence: str | None = None, notes: str = "", sampling: Mapping[str, Any] | None = None,
               overwrite: bool = False) -> None:  # fmt: skip
    """See `export`; `sampling` are the fields of `Plan` that tell the runtime how to sample and what to flag.

    Raises:
        Stop: of the kinds that `read_training_run` and `publish` raise, or an extra that is not installed.
    """
    try:
        from m2s_export.bundle import Plan, publish_run
        from m2s_export.training_run import read_training_run
    except ImportError as error:
        raise EngineError(
            f'm2s-export needs PyTorch and onnx ({error}); run `pip install "mask2surface[export]"`'
        ) from error
    run = read_training_run(source)
    training = run.training(data, data_licence)
    plan = Plan(out.name, training, licence or run.licence, run.step_range_mm, half=half, notes=notes,
                **(sampling or {}))  # fmt: skip
    bundle = publish_run(run, out, plan, overwrite=overwrite)
    size = sum(entry.size for entry in bundle.manifest.files.values()) / 1e6
    parity = bundle.manifest.parity
    worst = max(parity.graphs.values(), key=lambda g: g.max_abs).max_abs
    click.echo(
        f"{bundle.path}: {size:.1f} MB, largest deviation {worst:.2g}, surfaces {parity.surface_p95_mm or 0:.2g} mm"
    )


def main() -> None:
    """Entry point: errors raised on purpose become one line and their exit code."""
    try:
        export.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(_INTERRUPTED)
    except Stop as error:
        click.echo(f"m2s-export: {error}", err=True)
        sys.exit(error.exit_code)
