"""Whether a heart costs the same in a large run as in a small one: real reconstructions with a real bundle.

    python benchmarks/flat_cost.py --work runs/flat --cases 100,1000

Every input is a copy of one of the examples (or of the label maps in `--inputs`) under its own hash, so that each gets
its own noise. What follows `--` goes to `m2s-run`. Prints a row for each number of cases: seconds on the clock for a
heart, all in and between the first and the last one, CPU seconds, and peak memory of all processes together. Exit code
1 when a bar is missed.
"""

import gzip
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle, islice
from pathlib import Path

import click
import nibabel as nib
from many_cases import family_mib

EXAMPLES = Path(__file__).parents[1] / "examples"
GROWTH, PEAK_MIB = 0.05, 1.2e9 / 2**20


@dataclass(frozen=True)
class Cost:
    """Of a run: cases, seconds on the clock, those between the first and the last case, of the processors, MiB."""

    cases: int
    wall: float
    between: float
    cpu: float
    peak: float

    @property
    def row(self) -> str:
        """A line of the table."""
        steady = self.between / max(self.cases - 1, 1)
        each = f"{self.wall / self.cases:.3f} | {steady:.3f} | {self.cpu / self.cases:.3f}"
        return f"| {self.cases} | {self.wall:.1f} | {each} | {self.peak:.0f} |"


def make_inputs(folder: Path, sources: Sequence[Path], cases: int) -> None:
    """Copies of the sources, in turn, no two alike: each has a number in its header."""
    folder.mkdir(parents=True)
    for index, source in enumerate(islice(cycle(sources), cases)):
        image = nib.Nifti1Image.from_filename(source)
        image.header["descrip"] = str(index).encode()
        (folder / f"heart{index:05d}.nii.gz").write_bytes(gzip.compress(image.to_bytes(), 1, mtime=0))


def measure(work: Path, sources: Sequence[Path], cases: int, words: Sequence[str]) -> Cost:
    """One `m2s-run` over so many cases."""
    shutil.rmtree(work, ignore_errors=True)
    make_inputs(work / "in", sources, cases)
    log, peak = work / "events.jsonl", 0.0
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    code = "import sys; from m2s_runtime import cli; sys.exit(cli.run(sys.argv[1:]))"
    words = [str(work / "in"), "-o", str(work / "out"), "-q", "--log-json", str(log), *words]
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, family_mib(process.pid))
        time.sleep(0.2)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise click.ClickException(f"m2s-run ended with {process.returncode}")
    times = list(_times(log))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cases, wall, times[-1] - times[0], cpu, peak)


def _times(log: Path) -> Iterator[float]:
    """When the cases were done."""
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "case":
            yield datetime.fromisoformat(event["time"]).timestamp()


@click.command(context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True})
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/flat-cost"), show_default=True)
@click.option("--cases", default="100,1000", show_default=True, help="Numbers of cases, the small one first.")
@click.option("--inputs", type=click.Path(exists=True, path_type=Path), help="Folder of 3-D label maps to copy.")
@click.argument("words", nargs=-1, metavar="[-- OPTIONS OF m2s-run]")
def main(work: Path, cases: str, inputs: Path | None, words: tuple[str, ...]) -> None:
    """Measure, print and compare with the bars."""
    examples = [EXAMPLES / "labelled.nii.gz", EXAMPLES / "wall_oblique.nii.gz"]
    sources = sorted(inputs.glob("*.nii*")) if inputs else examples
    print("| cases | s | s a heart | between first and last | CPU s a heart | peak MiB, all processes |")
    print("|---|---|---|---|---|---|")
    found: list[Cost] = []
    for count in map(int, cases.split(",")):
        found.append(measure(work, sources, count, words))
        print(found[-1].row, flush=True)
    first, last = found[0], found[-1]
    many = last.cases / first.cases
    wall, cpu, memory = last.wall / first.wall / many - 1, last.cpu / first.cpu / many - 1, last.peak / first.peak - 1
    print(f"\na heart of {last.cases} against one of {first.cases}: {wall:+.1%} on the clock, {cpu:+.1%} of CPU")
    print(f"memory: {memory:+.1%}")
    sys.exit(0 if max(wall, memory) <= GROWTH and last.peak <= PEAK_MIB else 1)


if __name__ == "__main__":
    main()
