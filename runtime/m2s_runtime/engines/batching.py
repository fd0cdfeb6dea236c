"""Batches across cases: those of a process run side by side, and all that ask for the same graph are answered at once.

A GPU is given one shape only: what a batch lacks is filled up, so that a case's bytes depend neither on its batch-mates
nor on how many there are. A single thread speaks to the device.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.base import Arrays, Drawn, Draws, Engine, Floats, Generates, GeneratingEngine
from m2s_runtime.manifest import GRAPHS
from m2s_runtime.seats import Seats

_PATIENCE_SECONDS: Final = 0.5
"""Longest wait of a batch that is not full for a case that is still under way."""


@dataclass(frozen=True, eq=False)
class _Request:
    """A call that waits to be made, its arrays all of one number of rows."""

    what: tuple[object, ...]
    call: Callable[[Arrays], Arrays]
    arrays: Arrays
    answer: Future[Arrays] = field(default_factory=Future[Arrays])
    since: float = field(default_factory=time.monotonic)

    @property
    def rows(self) -> int:
        return len(next(iter(self.arrays.values())))


class Batched:
    """An engine that makes batches of the calls of several threads.

    Attributes:
        rows: rows of every batch; with 1 no call is joined with another nor divided.
        seats: of the cases that call.
    """

    def __init__(self, engine: Engine, rows: int, seats: Seats, speakers: int = 1) -> None:
        """Answer for `engine`, which no one else may use from now on; `speakers` threads may at a time."""
        self.name, self.device, self.threads = engine.name, engine.device, engine.threads
        self.description, self.rows, self.seats = engine.description, rows, seats
        self._engine = engine
        self._waiting: list[_Request] = []
        for _ in range(speakers):
            threading.Thread(target=self._serve, daemon=True).start()

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        return self.together((graph,), lambda arrays: self._engine.run(graph, arrays), dict(inputs))

    def together(self, what: tuple[object, ...], call: Callable[[Arrays], Arrays], arrays: Arrays) -> Arrays:
        """What `call` answers to these arrays, asked together with all who ask for the same and wait for it.

        Args:
            what: equal for calls that can be made together: the stage, and what else decides about it.
            call: takes and returns arrays with as many rows as it is given.
            arrays: by name, all with the same number of rows.
        """
        request = _Request(what, call, arrays)
        with self.seats.changed:
            self._waiting.append(request)
            self.seats.changed.notify_all()
        return request.answer.result()

    def _serve(self) -> None:
        while True:
            with self.seats.changed:
                while not (batch := self._next()):
                    self.seats.changed.wait(_PATIENCE_SECONDS if self._waiting else None)
                for request in batch:
                    self._waiting.remove(request)
            self._answer(batch)

    def _next(self) -> list[_Request]:
        """Calls to make now: a full batch, or if none can fill up any more, of those furthest behind."""
        groups: dict[tuple[object, ...], list[_Request]] = {}
        for request in self._waiting:
            groups.setdefault(request.what, []).append(request)
        for group in groups.values():
            if sum(request.rows for request in group) >= self.rows:
                return self._fitting(group)
        overdue = [one for one in self._waiting if time.monotonic() - one.since >= _PATIENCE_SECONDS]
        if overdue:
            return self._fitting(groups[overdue[0].what])
        if self.seats.taken > len(self._waiting) or not groups:
            return []
        return self._fitting(groups[min(groups, key=_stage)])

    def _fitting(self, group: Sequence[_Request]) -> list[_Request]:
        rows = np.cumsum([request.rows for request in group])
        return list(group[: max(int(np.searchsorted(rows, self.rows, side="right")), 1)])

    def _answer(self, batch: Sequence[_Request]) -> None:
        """Make a call for all; if that fails, one for each, so that it fails for the culprit alone."""
        try:
            for request, answer in zip(batch, self._joined(batch), strict=True):
                request.answer.set_result(answer)
        except Exception as error:  # noqa: BLE001 - whoever asked raises it
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for request in batch:
                self._answer([request])

    def _joined(self, batch: Sequence[_Request]) -> list[Arrays]:
        first = batch[0]
        if self.rows == 1:
            return [first.call(first.arrays)]
        together = {name: np.concatenate([request.arrays[name] for request in batch]) for name in first.arrays}
        total = sum(request.rows for request in batch)
        blocks = [
            first.call({name: self._filled(array[k : k + self.rows]) for name, array in together.items()})
            for k in range(0, total, self.rows)
        ]
        answers = {name: np.concatenate([block[name] for block in blocks])[:total] for name in blocks[0]}
        ends = np.cumsum([request.rows for request in batch])
        return [{n: a[e - r.rows : e] for n, a in answers.items()} for r, e in zip(batch, ends, strict=True)]

    def _filled(self, array: NDArray[Any]) -> NDArray[Any]:
        missing = self.rows - len(array)
        return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


class BatchedGenerator(Batched):
    """The same for an engine that `Generates`."""

    def __init__(self, engine: GeneratingEngine, rows: int, seats: Seats) -> None:
        """See `Batched`."""
        super().__init__(engine, rows, seats)
        self._generate = engine.generate

    def generate(self, csdg: Floats, noise: Floats, levels: Sequence[int], bars: NDArray[np.float64]) -> Floats:
        """See `m2s_runtime.engines.base.Generates`; samples that share a condition are given one each."""

        def call(arrays: Arrays) -> Arrays:
            return {"sdg": self._generate(arrays["csdg"], arrays["z"], levels, bars)}

        conditions = csdg.repeat(len(noise) // len(csdg), axis=0)
        return self.together(("generate", *levels), call, {"csdg": conditions, "z": noise})["sdg"]


class _DrawingEngine(GeneratingEngine, Draws, Protocol):
    """All three."""


class BatchedDrawer(BatchedGenerator):
    """The same for an engine that `Draws`."""

    def __init__(self, engine: _DrawingEngine, rows: int, seats: Seats) -> None:
        """See `Batched`."""
        super().__init__(engine, rows, seats)
        self._draw = engine.draw

    def draw(
        self, slices: Floats, shifts: Floats, steps_mm: NDArray[np.float64],
        noise: Floats, levels: Sequence[int], bars: NDArray[np.float64],
    ) -> Drawn:  # fmt: skip
        """See `m2s_runtime.engines.base.Draws`; samples that share a stack are given one each."""

        def call(arrays: Arrays) -> Arrays:
            a = arrays
            drawn = self._draw(a["slices"], a["shifts"], a["steps_mm"], a["z"], levels, bars)
            return {"walls": drawn.walls, "sdgs": drawn.sdgs, "states": drawn.states}

        stacks = {"slices": slices, "shifts": shifts, "steps_mm": steps_mm}
        each = {name: array.repeat(len(noise) // len(slices), axis=0) for name, array in stacks.items()}
        found = self.together(("draw", *levels), call, each | {"z": noise})
        return Drawn(found["walls"][: len(slices)], found["sdgs"], found["states"][: len(slices)])


def _stage(what: tuple[object, ...]) -> int:
    return GRAPHS.index(what[0]) if what[0] in GRAPHS else len(GRAPHS)


def batched(engine: Engine, rows: int) -> Batched:
    """An engine for so many rows at a time, with seats for two batches: one is computed while the other comes about.

    On a CPU larger batches gain nothing and cost the last digits (`mc` in ONNX Runtime): every call is made alone, and
    there is a seat for each row. Sessions of ONNX Runtime may be called from several threads.
    """
    if engine.device == "cpu":
        return Batched(engine, 1, Seats(rows), rows if engine.name == "onnx" else 1)
    seats = Seats(2 * rows)
    if isinstance(engine, Draws) and isinstance(engine, Generates):
        return BatchedDrawer(engine, rows, seats)
    return BatchedGenerator(engine, rows, seats) if isinstance(engine, Generates) else Batched(engine, rows, seats)


def usual_rows(engine: Engine, bundle: Bundle) -> int:
    """Rows of a batch unless someone asks for a number: on a GPU the most that the bundle has a profile for."""
    return 1 if engine.device == "cpu" else max(profile.max for profile in bundle.manifest.profiles.values())
