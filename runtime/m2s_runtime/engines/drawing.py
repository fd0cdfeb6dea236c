"""An engine with the C-SDG on its device, where that can be had."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from m2s_runtime.engines.base import Arrays, Drawn, Floats, GeneratingEngine
from m2s_runtime.engines.resident import Resident
from m2s_runtime.errors import EngineError

_LOG: Final = logging.getLogger(__name__)
T = TypeVar("T", bound="OnDevice")


class OnDevice(GeneratingEngine, Protocol):
    """An engine that `Generates` with a `Resident`."""

    @property
    def resident(self) -> Resident: ...  # noqa: D102


class DrawingEngine:
    """An engine that `Draws`; all else is as it was."""

    def __init__(self, engine: OnDevice) -> None:
        """Compile the kernels of the C-SDG and compare them with the host's.

        Raises:
            EngineError: the device cannot compile them, or computes something else.
        """
        engine.resident.prepare_csdg()
        self._engine, self.resident = engine, engine.resident
        self.name, self.device, self.threads = engine.name, engine.device, engine.threads
        self.description = engine.description

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        return self._engine.run(graph, inputs)

    def generate(self, csdg: Floats, noise: Floats, levels: Sequence[int], bars: NDArray[np.float64]) -> Floats:
        """See `m2s_runtime.engines.base.Generates`."""
        return self._engine.generate(csdg, noise, levels, bars)

    def draw(
        self, slices: Floats, shifts: Floats, steps_mm: NDArray[np.float64],
        noise: Floats, levels: Sequence[int], bars: NDArray[np.float64],
    ) -> Drawn:  # fmt: skip
        """See `m2s_runtime.engines.base.Draws`."""
        return self.resident.draw(slices, shifts, steps_mm, noise, levels, bars)


def drawing(engine: T) -> DrawingEngine | T:
    """The engine with the C-SDG on its device, or, with a warning that says why, as it is: then the host makes it."""
    try:
        return DrawingEngine(engine)
    except EngineError as error:
        _LOG.warning("distances are measured on the host: %s", error)
        return engine
