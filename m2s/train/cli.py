"""`m2s-train mcsr|vqvae|diffusion RUN`: the three stages, each resumable, all in one run folder; then `decoder`.

`m2s-train mcsr RUN --init WEIGHTS --data PAIRS` fine-tunes on real pairs; `m2s-train pairs` simulates such pairs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack

import click

from m2s.baselines.registry import BASELINES
from m2s.finite import Finite
from m2s.nets.presets import PRESETS
from m2s.train.guarded import guarded
from m2s.train.job import job_of
from m2s.train.prepare import prepare
from m2s.train.simulated_pairs import write_simulated_pairs
from m2s_runtime.errors import SOME_FAILED, TERMINATED, exit_codes

if TYPE_CHECKING:
    from m2s.baselines.registry import Size
    from m2s.train.recipes import StageName
    from m2s.train.simulated_pairs import PairOptions

_GOES_ON: Final = "goes on from the last checkpoint"
_OPTIONS = [
    click.argument("run", type=click.Path(file_okay=False, path_type=Path)),
    click.option("--preset", type=click.Choice(list(PRESETS)), default="compact", show_default=True),
    click.option("--atlas", type=click.Path(exists=True, file_okay=False), help="Folder of the CAP MESA shape atlas."),
    click.option(
        "--label-maps",
        type=click.Path(exists=True, file_okay=False),
        help="Folder of the paper's data set, <id>/HR_ED.nii.gz …",
    ),
    click.option(
        "--prepared",
        type=click.Path(exists=True, file_okay=False),
        help="Folder that m2s-train prepare made of the label maps: their surfaces are its fitted templates.",
    ),
    click.option("--phantom", is_flag=True, help="Train on procedural phantoms instead; needs no data."),
    click.option("--hearts", type=click.IntRange(1), default=1500, show_default=True, help="Training hearts to make."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
    click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
    click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that make hearts."),
    click.option(
        "--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads of the training."
    ),
    click.option("--steps", type=click.IntRange(1), help="Optimiser steps instead of the recipe's."),
    click.option(
        "--minutes",
        type=Finite(0, min_open=True),
        help="Budget, to whose end the schedule anneals: wall clock; for baseline on a CPU processor time.",
    ),
    click.option("--batch", type=click.IntRange(1), help="Batch size instead of the recipe's."),
    click.option("--rate", type=Finite(0, min_open=True), help="Learning rate instead of the recipe's."),
    click.option("-q", "--quiet", is_flag=True, help="No progress bar."),
]


def _tuning(command: Callable[..., None]) -> Callable[..., None]:
    """Options of fine-tuning."""
    init = click.option(
        "--init",
        type=click.Path(path_type=Path),
        help="Fine-tune the weights of this run (mcsr: or of this bundle, or of mcsr/best.safetensors); with --data.",
    )
    data = click.option(
        "--data",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder of real pairs to fine-tune on, <id>/{LR,HR}_{ED,ES}.nii.gz; with --init.",
    )
    return init(data(command))


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=exit_codes(SOME_FAILED, TERMINATED),
)
def main() -> None:
    """Train the networks. A stopped training goes on when the same command is given again."""


@main.command()
@click.option(
    "--motion-hearts",
    type=click.IntRange(1),
    help="Hearts for MC-Net of compact alone, which keeps only some numbers of each.  [default: with --preset compact "
    "--atlas 16 times --hearts, else --hearts]",
)
@_tuning
def mcsr(**options: object) -> None:
    """Motion correction and super-resolution."""
    _run("mcsr", options)


@main.command()
@click.option(
    "--codebook",
    type=click.Choice(["ema", "gradient"]),
    help="Learn the codes by moving averages or by Eq. 1's gradient instead of the preset's way.",
)
def vqvae(**options: object) -> None:
    """Compression of signed distance grids."""
    _run("vqvae", options)


@main.command()
def diffusion(**options: object) -> None:
    """Latent diffusion; needs the other two stages in the same run."""
    _run("diffusion", options)


@main.command()
def decoder(**options: object) -> None:
    """Teach the decoder to read the denoiser's latents; optional, after the diffusion, not for preset paper."""
    _run("decoder", options)


@main.command()
@click.argument("name", type=click.Choice(list(BASELINES)))
@click.option(
    "--size",
    type=click.Choice(["published", "cpu", "tiny"]),
    default="cpu",
    show_default=True,
    help="As in the source, or what two cores can train.",
)
@_tuning
def baseline(name: str, size: "Size", **options: object) -> None:
    """A method that ours is compared with, in RUN/NAME; --minutes for all its trainings, on a CPU in its own time."""
    with guarded(Path(str(options["run"])), "RUN", _GOES_ON):
        from m2s.train.baselines import train_baseline

        for stage, figures in train_baseline(name, job_of(options), size).items():
            click.echo("\n".join(f"{stage:16s} {figure:16s} {value:.4f}" for figure, value in figures.items()))


@main.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--atlas", type=click.Path(exists=True, file_okay=False), help="Hearts of the shape atlas in this folder."
)
@click.option("--phantom", is_flag=True, help="Procedural phantoms instead.")
@click.option("--hearts", type=click.IntRange(1), default=40, show_default=True, help="Training pairs.")
@click.option("--held", type=click.IntRange(1), default=10, show_default=True, help="Selection and validation pairs.")
@click.option("--motion", default="normal:4", show_default=True, help="paper, or normal:SD with SD in mm.")
@click.option(
    "--stand-in",
    is_flag=True,
    help="Stacks of the clinical stand-in instead: drift and jumps, lost and open slices, other outlines and breath.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def pairs(out: Path, atlas: str | None, motion: str, **options: "Unpack[PairOptions]") -> None:
    """Simulate pairs as --data takes them, to try fine-tuning on a motion that training never saw."""
    with guarded(out, "OUT", "begins anew"):
        write_simulated_pairs(out, atlas, motion, **options)


main.add_command(prepare)

for _command in (mcsr, vqvae, diffusion, decoder, baseline):
    for _option in reversed(_OPTIONS):
        _option(_command)


def _run(stage: "StageName", options: dict[str, object]) -> None:
    with guarded(Path(str(options["run"])), "RUN", _GOES_ON):
        from m2s.train.stages import train

        train(stage, job_of(options))
