"""What only a process of its own can show: the first run, the whole command, lines that do not fit together."""

import contextlib
import json
import multiprocessing
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from m2s.bench.lines import Facts, LineSpec, Setup, facts, open_line
from m2s.bench.machine import gpu_memory_mib
from m2s.bench.measure import Samples, one_round, warm_up
from m2s.bench.networks import NetworkSettings
from m2s.bench.result import FirstRun, NetworkTime, WholeRun
from m2s.bench.work import random_inputs
from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines.cuda import cuda_index
from m2s_runtime.errors import SOME_FAILED, EngineError

_EVERY: Final = 0.1
"""Seconds between two looks at memory."""


def first_run(spec: LineSpec, setup: Setup, out: Path) -> FirstRun:
    """From nothing to the first heart, in a fresh process.

    Raises:
        Stop: see `lines.open_line`.
    """
    return _elsewhere(_first_run, spec, setup, out, time.time())


@dataclass(frozen=True)
class Apart:
    """What a line came to in a process of its own."""

    facts: Facts
    samples: Samples
    networks: tuple[NetworkTime, ...]


def apart(spec: LineSpec, setup: Setup, out: Path, rounds: int, networks: NetworkSettings) -> Apart:
    """Hearts and networks of one line in a process of its own.

    Raises:
        Stop: see `lines.open_line`.
    """
    return _elsewhere(_apart, spec, setup, out, rounds, networks)


def whole_run(spec: LineSpec, setup: Setup, out: Path, jobs: int | None) -> WholeRun:
    """The command `m2s-run` on all files of the set-up.

    Raises:
        EngineError: it failed, or not a single case came out.
    """
    log = out / "events.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    words = ["--out", str(out / "whole"), "--overwrite", "-q", "--log-json", str(log), "--labels", setup.labels]
    words += ["--engine", spec.kind, "--precision", spec.precision, "--device", spec.device]
    words += ["--threads", str(setup.threads)] if setup.threads else []
    for option, value in (("--model", setup.model), ("--steps", setup.steps), ("--jobs", jobs)):
        words += [option, str(value)] if value is not None else []
    words += ["--engine-dir", str(setup.engine_dir)] if setup.engine_dir else []
    # A file named outright may lie anywhere; the arguments of thousands fit a command line.
    words += ["--", *(str(source.path) for source in setup.sources)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", "from m2s_runtime.cli import main; main()", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peak = _watched(process)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    done, seconds = finished(log)
    if process.returncode not in (0, SOME_FAILED) or not done:
        raise EngineError(f"{spec.name}: m2s-run ended with exit code {process.returncode}; its own lines say why")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return WholeRun(done, wall / done, cpu / done, seconds / done, peak or None)


def resident_mib(pid: int | str) -> float:
    """Resident memory of a process and its children now; 0 where there is no /proc."""
    total, parents = 0.0, _parents()
    for child, (parent, mib) in parents.items():
        if str(pid) in (child, parent) or parents.get(parent, ("", 0.0))[0] == str(pid):
            total += mib
    return total


def _parents() -> dict[str, tuple[str, float]]:
    """Process to parent and resident MiB, of all that may be asked."""
    found: dict[str, tuple[str, float]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            found[folder.name] = status["PPid"].strip(), int(status["VmRSS"].split()[0]) / 1024
    return found


def _watched(process: subprocess.Popen[bytes]) -> float:
    """The most memory that it and its children held together, until it ended."""
    peak = 0.0
    try:
        while process.poll() is None:
            peak = max(peak, resident_mib(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_EVERY)
    finally:
        process.terminate()  # who interrupts the benchmark has not asked for a run to go on
    return peak


def finished(log: Path) -> tuple[int, float]:
    """How many cases a run has done, and the seconds from the moment that it could begin to the last of them.

    From the first case to the last would flatter: with several under way the first ones come all at once.
    """
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    times = [datetime.fromisoformat(event["time"]).timestamp() for event in events]
    done = [t for t, e in zip(times, events, strict=True) if e["event"] == "case" and e["state"] == "done"]
    return len(done), max(done, default=0.0) - times[0] if done else 0.0


def _elsewhere(work: Any, *given: Any) -> Any:  # noqa: ANN401 - whatever the function returns
    """What a function of this module returns in a process of its own; its errors are raised here."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(work, *given).result()
    except BrokenProcessPool as error:
        raise EngineError("a measuring process died, perhaps of too little memory; try fewer lines") from error


def _first_run(spec: LineSpec, setup: Setup, out: Path, began: float) -> FirstRun:
    started = time.time() - began
    index = cuda_index(spec.device)
    before = None if index is None else gpu_memory_mib()
    line = open_line(spec, setup, out, verify=False)
    opened = time.time() - began
    made = time.time()
    inputs = random_inputs(load_bundle(setup.model).manifest.graphs["mc"], 1)
    spent = time.time() - made  # which no user would
    line.engine.run("mc", inputs)
    first_call = time.time() - began - spent
    for source in setup.sources:
        if line.heart(source).failure is None:
            break
    first_heart = time.time() - began - spent
    after = None if index is None else gpu_memory_mib()
    gpu = None if before is None or after is None else after - before
    return FirstRun(started, opened, first_call, first_heart, _largest_mib(), gpu)


def _largest_mib() -> float | None:
    """The most that this process ever held; the system's own figure would begin with that of the process before it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return None


def _apart(spec: LineSpec, setup: Setup, out: Path, rounds: int, networks: NetworkSettings) -> Apart:
    line, samples = open_line(spec, setup, out), Samples()
    if rounds:
        warm_up(line, setup.sources)
    for turn in range(rounds):
        one_round([line], setup.sources, samples, turn)
    return Apart(facts(line), samples, tuple(networks.times(line)))
