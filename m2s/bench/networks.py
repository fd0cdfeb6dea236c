"""Graph by graph: how long a call takes, and how near that is to what the device can do."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from m2s.bench.lines import Line, facts
from m2s.bench.result import NetworkTime, Peak, Work
from m2s.bench.statistics import quantiles
from m2s.bench.work import random_inputs
from m2s_runtime import ddim
from m2s_runtime.engines.base import Generates
from m2s_runtime.manifest import GRAPHS, Manifest

STEP_INSIDE: Final = "denoise step inside"
_LEAST, _MOST = 3, 200


@dataclass(frozen=True)
class NetworkSettings:
    """How networks are measured, and what against; picklable.

    Attributes:
        batch_sizes: rows of a call; none: nothing is measured.
        seconds: to spend on each graph and batch size.
        manifest: signatures.
        work: of a row of each graph; empty where it could not be counted.
        peaks: by device; those that could not be measured are missing.
    """

    batch_sizes: tuple[int, ...]
    seconds: float
    manifest: Manifest
    work: dict[str, Work]
    peaks: dict[str, Peak]

    def times(self, line: Line) -> list[NetworkTime]:
        """Every graph at every batch size on random inputs; engines return host arrays, so devices have finished.

        Raises:
            EngineError: a call failed, as with too little memory.
        """
        engine, found = line.engine.inner, list[NetworkTime]()
        peak, precision = self.peaks.get(engine.device), facts(line).precision
        for batch in self.batch_sizes:
            for graph in GRAPHS:
                inputs = random_inputs(self.manifest.graphs[graph], batch)
                times = _repeated(lambda g=graph, i=inputs: engine.run(g, i), self.seconds)
                found.append(rated(graph, batch, times, self.work.get(graph), peak, precision))
            if isinstance(engine, Generates):
                inside = _steps_inside(engine, self.manifest, batch, self.seconds)
                if inside:
                    found.append(rated(STEP_INSIDE, batch, inside, self.work.get("denoise"), peak, precision))
        return found


def rated(
    graph: str, batch: int, times: Sequence[float], work: Work | None, peak: Peak | None, precision: str
) -> NetworkTime:
    """Seconds of calls, set against work and peak at the median."""
    spread = quantiles(times)
    at = spread.p50
    flops = work.flops * batch / at if work else None
    best = peak.flops.get(precision) if peak else None
    of_matrix = of_roofline = None
    if work and peak and best and flops is not None:
        half = 0.5 if precision == "float16" else 1.0
        moved = half * (work.weight_bytes + work.activation_bytes * batch)
        of_matrix = flops / best
        of_roofline = max(work.flops * batch / best, moved / peak.copy) / at
    return NetworkTime(graph, batch, spread, batch / at, flops, of_matrix, of_roofline)


def _repeated(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call after one that is not counted."""
    call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < _LEAST or (time.perf_counter() < until and len(times) < _MOST):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times


def _steps_inside(engine: Generates, manifest: Manifest, batch: int, seconds: float) -> list[float]:
    """Seconds of a denoising step in a loop on the device: a loop of eleven less one of one, shared by ten.

    Empty where the machine is so busy that eleven steps seem to take no longer than one.
    """
    schedule = manifest.schedule
    bars = ddim.alpha_bars(schedule.beta_start, schedule.beta_end, schedule.train_steps)
    csdg = random_inputs(manifest.graphs["encode"], batch)["csdg"]
    noise = random_inputs(manifest.graphs["denoise"], batch)["z"]
    eleven, one = (ddim.timesteps(count, manifest.timestep_spacing) for count in (11, 1))
    long = _repeated(lambda: engine.generate(csdg, noise, eleven, bars), seconds)
    short = quantiles(_repeated(lambda: engine.generate(csdg, noise, one, bars), seconds)).p50
    times = [(whole - short) / 10 for whole in long]
    return times if min(times) > 0 else []
