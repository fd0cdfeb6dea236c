"""An engine that adds up how long its networks take."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m2s_runtime.engines.base import Arrays, Drawn, Draws, Engine, Floats, Generates


class Timed:
    """Passes everything on; answers are host arrays, so that a device has finished when the clock stops.

    Attributes:
        seconds: graph, `generate` or `draw` to the seconds since `clear`.
    """

    def __init__(self, engine: Engine) -> None:
        """Wrap an engine."""
        self.name, self.device, self.threads = engine.name, engine.device, engine.threads
        self.description: Final = engine.description
        self.inner: Final = engine
        self.seconds: dict[str, float] = {}

    def clear(self) -> None:
        """Start from nothing."""
        self.seconds.clear()

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        began = time.perf_counter()
        outputs = self.inner.run(graph, inputs)
        self._add(graph, began)
        return outputs

    def _add(self, name: str, began: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


class TimedLoop(Timed):
    """The same for an engine that keeps the sampling loop on its device."""

    def generate(self, csdg: Floats, noise: Floats, levels: Sequence[int], bars: NDArray[np.float64]) -> Floats:
        """See `m2s_runtime.engines.base.Generates`."""
        if not isinstance(self.inner, Generates):
            raise TypeError(f"{self.inner.name} does not generate")
        began = time.perf_counter()
        made = self.inner.generate(csdg, noise, levels, bars)
        self._add("generate", began)
        return made


class TimedDrawing(TimedLoop):
    """The same for one that keeps all from super-resolution on there; its C-SDG counts among the networks."""

    def draw(
        self,
        slices: Floats,
        shifts: Floats,
        steps_mm: NDArray[np.float64],
        noise: Floats,
        levels: Sequence[int],
        bars: NDArray[np.float64],
    ) -> Drawn:
        """See `m2s_runtime.engines.base.Draws`."""
        if not isinstance(self.inner, Draws):
            raise TypeError(f"{self.inner.name} does not draw")
        began = time.perf_counter()
        made = self.inner.draw(slices, shifts, steps_mm, noise, levels, bars)
        self._add("draw", began)
        return made


def timed(engine: Engine) -> Timed:
    """Wrap an engine so that the pipeline drives it as it would drive the engine itself."""
    kind = TimedDrawing if isinstance(engine, Draws) else TimedLoop if isinstance(engine, Generates) else Timed
    return kind(engine)
