"""What the journal costs: thousands of tiny cases through `m2s-run` with a reconstructor that takes no time.

    python benchmarks/many_cases.py --work runs/many-cases

Prints the time a case takes in the journal alone (find, write, table) and in a whole run, memory on the way, and the
time of the same command once everything is done. Exit code 1 when a bar is missed. `--work` is the disk to measure.
"""

import csv
import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np

from m2s_runtime import cli, session
from m2s_runtime.grid import GRID
from m2s_runtime.journal import Journal, Row
from m2s_runtime.placement import Canonical
from m2s_runtime.result import Floats, Reconstruction
from m2s_runtime.surface import extract_surface

JOURNAL_MS, RESUME_SECONDS, GROWTH_MIB = 3.0, 10.0, 16.0


@dataclass(frozen=True)
class Named:
    """Stands for a bundle and for an engine."""

    name: str = "stub"
    path: str = "stub"
    sha256: str = "0" * 64
    device: str = "cpu"
    threads: int = 1
    description: str = "no network at all"


class Instant:
    """Gives every stack the same small ball, in a place of its own."""

    def __init__(self) -> None:
        x, y, z = (np.arange(n, dtype=np.float32) - n / 2 for n in GRID)
        sdg = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + (2 * z) ** 2) - np.float32(12)
        mesh = extract_surface(sdg, np.diag([1.0, 1.0, 2.0, 1.0]))
        zeros = np.zeros((12, 2), np.float32)
        seen = np.full(12, 0.9, np.float32)
        self.answer = Reconstruction(mesh, zeros, zeros[0], sdg, sdg, np.eye(4), (), {}, None, seen)

    def estimate(self, canonical: Canonical, noise_key: str) -> Floats:  # noqa: ARG002
        """No shift at all."""
        return self.answer.shifts

    def reconstruct(self, canonical: Canonical, noise_key: str, shared: Any = None) -> Reconstruction:  # noqa: ANN401, ARG002
        """The ball, moved by a number that the key gives."""
        mesh = self.answer.mesh
        return replace(self.answer, mesh=replace(mesh, vertices=mesh.vertices + int(noise_key[:4], 16) / 1000))


def instant(_: object) -> tuple[Named, Named, Instant]:
    """Stands for `task.open_reconstructor`."""
    return Named(), Named(), Instant()


def make_inputs(folder: Path, cases: int) -> None:
    """Small label maps, no two alike: one template, and a number in the header's description."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y = np.mgrid[:32, :32] - 15.5
    radius = np.hypot(x, y)
    labels = np.repeat(((radius < 12) + (radius < 8)).astype(np.uint8)[:, :, None], 6, axis=2)
    image = nib.Nifti1Image(labels, np.diag([2.0, 2.0, 10.0, 1.0]))
    for index in range(cases):
        image.header["descrip"] = str(index).encode()
        (folder / f"case{index:06d}.nii.gz").write_bytes(gzip.compress(image.to_bytes(), 1, mtime=0))


def time_journal(out: Path, cases: int) -> tuple[float, float]:
    """Milliseconds a case, on the clock and of the processor, for all that the journal does in a run."""
    journal = Journal(out, bundle="0" * 64, options="0" * 64)
    journal.open()
    mesh = os.urandom(20_000)
    began, cpu = time.perf_counter(), time.process_time()
    for index in range(cases):
        case = f"case{index:06d}"
        if journal.complete(case, out / "none"):
            raise click.ClickException("a case was complete before it was done")
        journal.finish(Row(case=case, input=f"{case}.nii.gz", labels="label 2"), {f"{case}.ply": mesh}, "0" * 64)
    journal.merge([])
    return (time.perf_counter() - began) / cases * 1e3, (time.process_time() - cpu) / cases * 1e3


@dataclass(frozen=True)
class Measured:
    """Seconds on the clock, seconds of the processor, and MiB of parent and worker when 1, 2, … tenths were done."""

    wall: float
    cpu: float
    memory: list[float]


def run(work: Path, cases: int) -> Measured:
    """One `m2s-run` in a process of its own, watched through its event log."""
    log = work / "events.jsonl"
    log.unlink(missing_ok=True)
    words = [str(work / "in"), "-o", str(work / "out"), "-q", "--jobs", "1", "--log-json", str(log)]
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, __file__, "m2s-run", *words], stdout=subprocess.DEVNULL)
    memory: list[float] = []
    while process.poll() is None:
        done = log.read_bytes().count(b"\n") if log.exists() else 0
        if done > cases * (len(memory) + 1) // 10:
            memory.append(family_mib(process.pid))
        time.sleep(0.2)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise click.ClickException(f"m2s-run ended with {process.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(time.monotonic() - began, cpu, memory)


def family_mib(pid: int) -> float:
    """Resident memory of a process and its children (Linux); 0 for what is gone."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if folder.name == str(pid) or status["PPid"].strip() == str(pid):
            total += int(status.get("VmRSS", "0 kB").split()[0])
    return total / 1024


def spoil(out: Path) -> set[str]:
    """Delete one mesh and alter one byte of another; the cases concerned."""
    first, second = sorted(out.glob("*/*.ply"))[:2]
    first.unlink()
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    second.write_bytes(data)
    return {first.stem, second.stem}


def done_now(log: Path) -> set[str]:
    """Cases that the last run did anew."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return {event["case"] for event in events if event["event"] == "case" and event["state"] == "done"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/many-cases"), show_default=True)
@click.option("--cases", type=click.IntRange(10), default=10_000, show_default=True)
def main(work: Path, cases: int) -> None:
    """Measure, print and compare with the bars."""
    shutil.rmtree(work, ignore_errors=True)
    make_inputs(work / "in", cases)
    wall, cpu = time_journal(work / "journal", cases)
    shutil.rmtree(work / "journal")
    first, again = run(work, cases), run(work, cases)
    spoilt = spoil(work / "out")
    run(work, cases)
    noticed = done_now(work / "events.jsonl") == spoilt
    with (work / "out" / "cases.csv").open() as file:
        rows = len(list(csv.DictReader(file)))
    growth = max(first.memory[1:], default=0.0) - min(first.memory[1:], default=0.0)
    print(f"| {cases} cases | clock | processor |\n|---|---|---|")
    print(f"| journal alone, ms a case | {wall:.2f} | {cpu:.2f} |")
    print(f"| whole run, ms a case | {first.wall / cases * 1e3:.2f} | {first.cpu / cases * 1e3:.2f} |")
    print(f"| finished run again, s | {again.wall:.1f} | {again.cpu:.1f} |\n")
    print("memory of parent and worker by tenths, MiB: " + ", ".join(f"{mib:.0f}" for mib in first.memory))
    print(f"rows in cases.csv: {rows}; a deleted and an altered mesh noticed: {'yes' if noticed else 'NO'}")
    met = (cpu <= JOURNAL_MS, again.cpu <= RESUME_SECONDS, growth <= GROWTH_MIB, noticed, rows == cases)
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["m2s-run"]:
        session.open_reconstructor = instant  # type: ignore[assignment]
        sys.exit(cli.run(sys.argv[2:]))
    main()
