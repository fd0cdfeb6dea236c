"""Does the reader stand anything? Random volumes, spoilt at random, and gzip bombs; Markdown tables and an exit code.

    python benchmarks/fuzz_reader.py --inputs 10000

Each input is a good NIfTI-1 or -2 volume, single or a pair, with header fields set to odd values, bytes changed or the
stream cut, altered or replaced by up to 64 MiB of one byte. It is read, the wall is found and brought to the canonical
grid, as `m2s-run` does before a network sees anything. A crash is anything but a volume or a typed refusal, or a
process that dies; a hang is more than a second of CPU. Memory is the peak resident size of the process that reads,
above what it is after the imports; only Linux tells. Exit code 1 when a bar is missed.
"""

import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from runtime.bad_files import bomb, patched, random_plan, raw, write

MEMORY_MB = 150.0
BOMB_SECONDS, BOMB_MB = 0.1, 100.0
HANG_SECONDS = 1.0
DEAD_SECONDS = 60.0
"""Without a word from the process for so long it is ended and the input counted as a hang."""


@dataclass
class Tally:
    """What became of the inputs."""

    outcomes: Counter[str] = field(default_factory=Counter[str])
    crashes: list[str] = field(default_factory=list[str])
    hangs: list[str] = field(default_factory=list[str])
    slowest: float = 0.0
    peak_mb: float = 0.0

    def add(self, index: int, outcome: str, seconds: float, peak_mb: float) -> None:
        """Count one input."""
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, seconds)
        self.peak_mb = max(self.peak_mb, peak_mb)
        if outcome.startswith("crash"):
            self.crashes.append(f"{index} ({outcome})")
        if seconds > HANG_SECONDS:
            self.hangs.append(f"{index} ({seconds:.1f} s)")


def settle(path: Path) -> str:
    """Do with a file what comes before the networks; `volume` or the code of the refusal."""
    from m2s_runtime.errors import CaseError
    from m2s_runtime.labels import wall_mask
    from m2s_runtime.placement import canonicalise, slice_axis
    from m2s_runtime.volume import read_study

    try:
        study = read_study(path)
        wall, _ = wall_mask(study.labels, "auto", slice_axis(study.affine))
        canonicalise(wall[..., 0], study.affine)
    except CaseError as error:
        return error.code
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return f"crash: {type(error).__name__}: {error}"
    return "volume"


def resident(which: str) -> float:
    """`VmRSS` or `VmHWM` of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{which}:")[1].split()[0]) * 1024 / 1e6


def child(pipe: Connection, inputs: range, seed: int, work: Path) -> None:
    """Make and settle inputs; tell of each: index, outcome, CPU seconds, peak MB above what the imports take."""
    settle(work / "nothing.nii")  # imports
    forget_peak()
    baseline = resident("VmRSS")
    for index in inputs:
        path = write(work, random_plan(np.random.default_rng([seed, index])).files(), "x")
        start = time.process_time()
        outcome = settle(path)
        pipe.send((index, outcome, time.process_time() - start, resident("VmHWM") - baseline))
        for file in work.iterdir():
            file.unlink()


def forget_peak() -> None:
    """Let `VmHWM` start anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def feed(inputs: range, seed: int, work: Path, tally: Tally) -> range:
    """Run a process over inputs; those left when it died or was ended for a hang."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(there, inputs, seed, work))
    process.start()
    there.close()
    for index in inputs:
        try:
            told: Any = here.recv() if here.poll(DEAD_SECONDS) else (index, "hang", DEAD_SECONDS, 0.0)
        except EOFError:
            told = (index, "crash: the process died", 0.0, 0.0)
        tally.add(*told)
        if told[1] == "hang" or told[1].endswith("the process died"):
            process.kill()
            process.join()
            return range(index + 1, inputs.stop)
    process.join()
    return range(0)


def bombs() -> dict[str, bytes]:
    """Gzip files that expand to 2 GiB, by what they pretend to be."""
    return {
        "header of 2 GiB": bomb(patched({"dim": [4, 1000, 1000, 1000, 2, 1, 1, 1]}), 2048),
        "header of 2 GiB, version 2, ones": bomb(
            patched({"dim": [4, 1024, 1024, 1024, 2, 1, 1, 1]}, version=2), 2048, fill=1
        ),
        "no header": bomb(b"", 2048),
        "small volume, 2 GiB behind it": bomb(raw(), 2048),
    }


def drop(pipe: Connection, path: Path) -> None:
    """Settle one file and tell: outcome, CPU seconds, peak MB above what the imports take."""
    settle(path.with_name("nothing.nii"))
    forget_peak()
    baseline, start = resident("VmRSS"), time.process_time()
    outcome = settle(path)
    pipe.send((outcome, time.process_time() - start, resident("VmHWM") - baseline))


def drop_all(work: Path) -> bool:
    """Print the table of bombs; whether all stay within the bars."""
    click.echo("\n| bomb | file, MB | outcome | CPU, s | MB above the imports |\n|---|---|---|---|---|")
    good = True
    for name, content in bombs().items():
        path = write(work, content, "bomb")
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=drop, args=(there, path))
        process.start()
        there.close()
        outcome, seconds, mb = here.recv()
        process.join()
        good &= seconds < BOMB_SECONDS and mb < BOMB_MB
        click.echo(f"| {name} | {len(content) / 1e6:.1f} | {outcome} | {seconds:.3f} | {mb:.0f} |")
    return good


@click.command()
@click.option("--inputs", default=10_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--bombs/--no-bombs", "with_bombs", default=True, show_default=True)
def main(inputs: int, seed: int, *, with_bombs: bool) -> None:
    """Fuzz the reader and judge it by the bars of the project."""
    tally, left = Tally(), range(inputs)
    with tempfile.TemporaryDirectory() as folder:
        while left:
            left = feed(left, seed, Path(folder), tally)
    click.echo("| inputs | volumes | refusals | crashes | hangs | slowest, CPU s | peak, MB above the imports |")
    click.echo("|---|---|---|---|---|---|---|")
    refused = inputs - tally.outcomes["volume"] - len(tally.crashes)
    click.echo(
        f"| {inputs} | {tally.outcomes['volume']} | {refused} | {len(tally.crashes)} | {len(tally.hangs)} "
        f"| {tally.slowest:.2f} | {tally.peak_mb:.0f} |"
    )
    click.echo(", ".join(f"{code} {count}" for code, count in tally.outcomes.most_common()))
    for trouble in (*tally.crashes, *tally.hangs):
        click.echo(f"- seed {seed}, input {trouble}")
    good = not tally.crashes and not tally.hangs and tally.peak_mb <= MEMORY_MB
    if with_bombs:
        with tempfile.TemporaryDirectory() as folder:
            good &= drop_all(Path(folder))
    sys.exit(not good)


if __name__ == "__main__":
    main()
