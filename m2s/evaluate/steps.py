"""What denoising steps buy: the same coarse hearts through other numbers of steps and other starts of the diffusion.

Motion, super-resolution, C-SDG and condition are computed once a stack; what follows is repeated for each way to
sample, and so are the figures.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m2s.baselines.method import FloatArray, Method
from m2s.evaluate.coarse import shared
from m2s.evaluate.hearts import Cohort
from m2s.evaluate.networks import finished
from m2s.evaluate.scores import Row
from m2s_runtime import ddim
from m2s_runtime.blend import Blend
from m2s_runtime.csdg import coarse_sdg
from m2s_runtime.engines import Engine
from m2s_runtime.manifest import Manifest
from m2s_runtime.sampling import start_noise

STEPS: Final = (1, 2, 3, 5, 10)
MOST: Final = 50
"""Steps of plain sampling beyond which nothing is expected: five times the paper's."""
STARTS: Final = (250, 500, 750)
"""Levels at which the noised condition is taken for a noised answer."""

COLUMNS: Final = ("dice", "cd", "cd_over_floor", "assd", "hd95", "roughness_error", "sound", "sampling_seconds")


@dataclass(frozen=True)
class Way:
    """A way to sample.

    Attributes:
        steps: DDIM steps; 0 decodes the condition.
        temperature: factor on the noise of the start.
        start: level at which it starts from the noised condition; None for the noisiest, and noise alone.
    """

    steps: int
    temperature: float = 1.0
    start: int | None = None

    @property
    def name(self) -> str:
        """What the table calls it."""
        if not self.steps:
            return "no step: condition decoded"
        mean = ", temperature 0" if self.temperature == 0 else f", temperature {self.temperature:g}"
        told = f"{self.steps} step{'s' * (self.steps > 1)}{mean * (self.temperature != 1)}"
        return told if self.start is None else f"{told}, from the condition noised to t = {self.start}"

    def levels(self, manifest: Manifest) -> tuple[int, ...]:
        """Those to visit, the noisiest first."""
        if self.start is None:
            return ddim.timesteps(self.steps, manifest.timestep_spacing)
        return tuple(int(t) for t in np.round(np.linspace(self.start, 0, self.steps)))


WAYS: Final = (
    Way(0),
    Way(1, 0.0),
    *(Way(steps) for steps in (*STEPS, MOST)),
    *(Way(steps, 0.0) for steps in STEPS[1:]),
    *(Way(steps, start=start) for start in STARTS for steps in (1, 3)),
)


@dataclass(frozen=True)
class SteppedStack:
    """One stack of one heart, as a unit of work for the method `ours`."""

    cohort: Cohort
    row: int
    draw: int
    seed: int = 0
    law: str = "paper"
    ways: tuple[Way, ...] = field(default=WAYS, repr=False)

    @property
    def name(self) -> str:
        """What it is."""
        return f"steps, {self.cohort.name} {self.row}, {self.law}, draw {self.draw}, {self.cohort.mark}"

    def rows(self, methods: Mapping[str, Method]) -> Iterator[Row]:
        """One row a way to sample; `sampling_seconds` is the CPU time of denoising and decoding."""
        found = shared(methods, self.cohort, self.row, self.draw, self.seed, self.law)
        engine = found.pipeline.engine
        csdg = coarse_sdg(found.result.probability >= 0.5, engine.threads)
        zc = engine.run("encode", {"csdg": csdg[None, None]})["zc"]
        for way in self.ways:
            began = time.process_time()
            sdg = sampled(engine, found.pipeline.manifest, way, csdg, zc, found.key, self.seed)
            seconds = time.process_time() - began
            facts: Row = {"subject": found.subject.heart.id, "draw": self.draw, "method": "ours", "way": way.name}
            yield facts | found.score(sdg) | {"sampling_seconds": seconds}


def sampled(
    engine: Engine, manifest: Manifest, way: Way, csdg: FloatArray, zc: FloatArray, key: str, seed: int
) -> FloatArray:
    """Signed distances (128, 128, 64) mm, blended and finished as in the pipeline.

    Args:
        engine: runs `denoise` and `decode`.
        manifest: of its bundle.
        way: how to sample.
        csdg: (128, 128, 64) mm.
        zc: condition (1, D, X, Y, Z).
        key: of the noise.
        seed: of the noise.
    """
    z = zc
    if way.steps:
        schedule, levels = manifest.schedule, way.levels(manifest)
        bars = ddim.alpha_bars(schedule.beta_start, schedule.beta_end, schedule.train_steps)
        noise = start_noise(key, seed, 1, manifest.latent_shape, way.temperature)
        if way.start is not None:
            noise = np.sqrt(bars[way.start]) * zc + np.sqrt(1 - bars[way.start]) * noise
        z = ddim.sample(lambda z, t: _noise_in(engine, z, zc, t), noise.astype(np.float32), levels, bars)
    sdg = engine.run("decode", {"z": z.astype(np.float32)})["sdg"]
    return finished(Blend.of(manifest).mixed(sdg, csdg[None, None]))


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Lines of the table: one a way to sample, in the order of `WAYS`; a stack that was refused counts against each."""
    names = dict.fromkeys(str(row["way"]) for row in rows if row.get("way"))
    refused = [row for row in rows if row.get("error")]
    return {name: [row for row in rows if row.get("way") == name] + refused for name in names}


def _noise_in(engine: Engine, z: npt.NDArray[Any], zc: FloatArray, t: int) -> FloatArray:
    inputs = {"z": z.astype(np.float32), "zc": zc, "t": np.full(len(z), t, np.int64)}
    return engine.run("denoise", inputs)["eps"]
