"""Does preset `paper` run? All three stages for a few steps on phantoms, then the export; seconds and sizes.

With `tensorrt_rtx` installed, engines for an RTX 40 card follow; they need no card to be built.

    python benchmarks/paper_preset.py --work runs/paper-check

The published denoiser has 110 M weights: on one CPU core the diffusion and the export take tens of minutes. `--until`
stops earlier. Every part is a process of its own; stages that are done are not repeated.
"""

import importlib.util
import resource
import subprocess
import sys
import time
from pathlib import Path

import click

from m2s.nets.presets import PRESETS

STAGES = ("mcsr", "vqvae", "diffusion")


def timed(words: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and the largest memory so far in GiB of a child process.

    Raises:
        click.ClickException: it failed.
    """
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.run([sys.executable, "-c", *words], check=False).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise click.ClickException(f"{' '.join(words[1:])} ended with {code}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, cpu, after.ru_maxrss / 2**20


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/paper-check"), show_default=True)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="paper", show_default=True)
@click.option("--steps", type=click.IntRange(1), default=2, show_default=True, help="Optimiser steps of each stage.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--until", type=click.Choice([*STAGES, "export", "engines"]), default="engines", show_default=True)
def main(work: Path, preset: str, steps: int, threads: int, until: str) -> None:
    """Run the stages, then the export, and print a table."""
    options = ["--preset", preset, "--phantom", "--hearts", "1", "--batch", "1", "--steps", str(steps),
               "--threads", str(threads), "--workers", "1", "--device", "cpu", "-q"]  # fmt: skip
    train = "from m2s.train.cli import main; main()"
    parts = {stage: [train, stage, str(work / "run"), *options] for stage in STAGES}
    bundle = work / "bundle"
    export = "from m2s_export.cli import main; main()"
    # A few steps teach nothing, so there are no surfaces to compare yet.
    parts["export"] = [export, str(work / "run"), "--out", str(bundle), "--overwrite", "--surfaces", "0"]
    if importlib.util.find_spec("tensorrt_rtx"):
        engines = ["--target", "sm89", "--engine-dir", str(work / "engines")]
        parts["engines"] = [export, str(bundle), "--engine", "trt", *engines]
    click.echo("| part | seconds | CPU s | peak GiB |\n|---|---|---|---|")
    for name, words in parts.items():
        wall, cpu, memory = timed(words)
        click.echo(f"| {name} | {wall:.0f} | {cpu:.0f} | {memory:.1f} |")
        if name == until:
            break
    for file in sorted(bundle.glob("*")):
        click.echo(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
