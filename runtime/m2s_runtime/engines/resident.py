"""Encode, the whole DDIM loop and decode without leaving the device: one upload and one download a batch.

Where `device_csdg` can be had, super-resolution and the C-SDG that come before them stay there too.

Nothing here knows of CUDA. `Memory` hands out arrays and may record a piece of work to repeat it, an `Executor` binds
graphs to such arrays; the tests run the same lines on NumPy arrays and the CPU.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from m2s_runtime import ddim, grid
from m2s_runtime.blend import AS_DRAWN, Blend
from m2s_runtime.device_csdg import Device, DeviceCsdg, agrees, plane_pairs
from m2s_runtime.engines.base import Arrays, Drawn, Floats, finite_outputs, fitted_inputs
from m2s_runtime.errors import EngineError
from m2s_runtime.manifest import GraphSpec, TensorSpec

Work = Callable[[], None]
_Steps = Sequence[tuple[int, tuple[float, float]]]

_MOST_PLANS: Final = 8
"""Graphs and batch sizes whose buffers are kept; a run uses about four."""


@dataclass(frozen=True)
class Staged:
    """An array on the device, and its twin in host memory that copies can run from in the background."""

    host: NDArray[Any]
    array: Any


class Memory(Device, Protocol):
    """Arrays, kernels and order of execution of one device."""

    def scope(self) -> AbstractContextManager[object]:
        """Everything below runs inside: the device and its stream are the current ones."""
        ...

    def staged(self, shape: tuple[int, ...], dtype: str) -> Staged:
        """Zeros on either side."""
        ...

    def push(self, staged: Staged) -> None:
        """Enqueue the copy to the device."""
        ...

    def pull(self, staged: Staged) -> None:
        """Enqueue the copy to the host."""
        ...

    def wait(self) -> None:
        """Until everything enqueued is done."""
        ...

    def record(self, work: Work) -> Work:
        """The same work for repeated use, recorded where the device can."""
        ...


class Executor(Protocol):
    """Runs graphs on arrays of a device.

    Attributes:
        recordable: whether what `bind` returns may be recorded.
    """

    @property
    def recordable(self) -> bool: ...  # noqa: D102

    def rows(self, wanted: int) -> int:
        """How many rows to run at once when `wanted` are left: fewer, or more with padding."""
        ...

    def bind(self, graph: str, tensors: Mapping[str, Any]) -> Work:
        """A call that enqueues a graph on these very arrays, inputs and outputs by name."""
        ...


class Resident:
    """Runs graphs on a device, with the buffers of the last few batch sizes kept."""

    def __init__(
        self, memory: Memory, executor: Executor, specs: Mapping[str, GraphSpec], blend: Blend = AS_DRAWN
    ) -> None:
        """Allocate nothing yet; `blend` is that of the bundle."""
        self._blend = blend
        self._memory, self._executor, self._specs = memory, executor, specs
        self._plans: dict[object, _Plan] = {}
        self._csdg: DeviceCsdg | None = None

    def prepare_csdg(self) -> DeviceCsdg:
        """Compile what `draw` needs, unless that is done, and try it out.

        Raises:
            EngineError: the device does not compute what the host does.
        """
        if self._csdg is None:
            with self._memory.scope():
                if not agrees(self._memory):
                    raise EngineError("the device does not measure the distances that the host does; please report it")
                self._csdg = DeviceCsdg(self._memory)
        return self._csdg

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        spec = self._specs[graph]
        fitted = fitted_inputs(graph, spec, inputs)
        parts: list[Arrays] = []
        with self._memory.scope():
            for first, last, size in self._blocks(len(fitted[spec.inputs[0].name])):
                plan = self._plan((graph, size), partial(self._one_graph, graph, size))
                parts.append(plan.run({name: array[first:last] for name, array in fitted.items()}, last - first))
        return finite_outputs(graph, {t.name: np.concatenate([p[t.name] for p in parts]) for t in spec.outputs})

    def generate(self, csdg: Floats, noise: Floats, levels: Sequence[int], bars: NDArray[np.float64]) -> Floats:
        """See `m2s_runtime.engines.base.Generates`."""
        csdg = fitted_inputs("encode", self._specs["encode"], {"csdg": csdg})["csdg"]
        if len(csdg) not in (1, len(noise)):
            raise ValueError(f"{len(csdg)} conditions for {len(noise)} samples: give one, or one each")
        steps = tuple(zip(levels, ddim.coefficients(levels, bars), strict=True))
        parts: list[Floats] = []
        with self._memory.scope():
            for first, last, size in self._blocks(len(noise)):
                given = csdg if len(csdg) == 1 else csdg[first:last]
                conditions = self._executor.rows(1) if len(csdg) == 1 else size
                sizes = _Sizes(conditions, size, shared=len(csdg) == 1)
                plan = self._plan((sizes, steps), partial(self._whole_loop, sizes, steps))
                parts.append(plan.run({"csdg": given, "z": noise[first:last]}, last - first)["sdg"])
        return finite_outputs("decode", {"sdg": np.concatenate(parts)})["sdg"]

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
        given = fitted_inputs("sr", self._specs["sr"], {"slices": slices, "shifts": shifts})
        given["below"], given["weights"] = plane_pairs(steps_mm.tolist())
        if len(slices) not in (1, len(noise)) or len(steps_mm) != len(slices):
            raise ValueError(
                f"{len(slices)} stacks of {len(steps_mm)} steps for {len(noise)} samples: give one, or one each"
            )
        steps = tuple(zip(levels, ddim.coefficients(levels, bars), strict=True))
        parts: list[Arrays] = []
        kernels = self.prepare_csdg()
        with self._memory.scope():
            for first, last, size in self._blocks(len(noise)):
                shared = len(slices) == 1
                hearts = slice(0, 1) if shared else slice(first, last)
                sizes = _Sizes(self._executor.rows(1) if shared else size, size, shared=shared)
                plan = self._plan(("draw", sizes, steps), partial(self._whole_draw, kernels, sizes, steps))
                block = {name: array[hearts] for name, array in given.items()}
                parts.append(plan.run({**block, "z": noise[first:last]}, last - first))
        walls, states, sdgs = (np.concatenate([p[name] for p in parts]) for name in ("walls", "states", "sdg"))
        found = Drawn(walls[: len(slices)], sdgs[:, 0], states[: len(slices)])
        # What a stack without wall leads to means nothing, and is no fault of the others.
        found.sdgs[np.broadcast_to(found.faulty, len(noise))] = 0
        finite_outputs("decode", {"sdg": found.sdgs})
        return found

    def _blocks(self, rows: int) -> Iterator[tuple[int, int, int]]:
        """First row, last row + 1, and rows to run, of which those beyond the last are padding."""
        first = 0
        while first < rows:
            size = self._executor.rows(rows - first)
            yield first, min(first + size, rows), size
            first += size

    def _one_graph(self, graph: str, rows: int) -> "_Plan":
        spec = self._specs[graph]
        reads, writes = ({t.name: self._staged(t, rows) for t in side} for side in (spec.inputs, spec.outputs))
        work = self._executor.bind(graph, {name: staged.array for name, staged in {**reads, **writes}.items()})
        return _Plan(self._memory, reads, writes, work)

    def _whole_loop(self, sizes: "_Sizes", steps: _Steps) -> "_Plan":
        """C-SDG and noise in, SDG out."""
        csdg = self._staged(self._specs["encode"].inputs[0], sizes.conditions)
        z, sdg, work = self._loop(csdg, sizes, steps)
        return _Plan(self._memory, {"csdg": csdg, "z": z}, {"sdg": sdg}, self._recorded(work))

    def _whole_draw(self, kernels: DeviceCsdg, sizes: "_Sizes", steps: _Steps) -> "_Plan":
        """Slices, shifts and noise in; the wall on the grid, what is the matter with it, and SDG out."""
        sr, rows, staged = self._specs["sr"], sizes.conditions, self._memory.staged
        reads = {t.name: self._staged(t, rows) for t in sr.inputs}
        reads["below"] = staged((rows, grid.GRID[2]), "int32")
        reads["weights"] = staged((rows, grid.GRID[2], 2), "float32")
        writes = {"walls": staged((rows, *grid.GRID), "float32"), "states": staged((rows, 2), "int32")}
        probability, csdg = self._staged(sr.outputs[0], rows), self._staged(self._specs["encode"].inputs[0], rows)
        arrays = {t.name: reads[t.name].array for t in sr.inputs}
        run_sr = self._executor.bind("sr", {**arrays, sr.outputs[0].name: probability.array})
        measure = kernels.bind(
            probability.array, reads["below"].array, reads["weights"].array,
            writes["walls"].array, csdg.array, writes["states"].array,
        )  # fmt: skip
        z, sdg, sample = self._loop(csdg, sizes, steps)

        def work() -> None:
            run_sr()
            measure()
            sample()

        return _Plan(self._memory, {**reads, "z": z}, {**writes, "sdg": sdg}, self._recorded(work))

    def _loop(self, csdg: Staged, sizes: "_Sizes", steps: _Steps) -> tuple[Staged, Staged, Work]:
        """Noise, SDG, and the work between them: the arithmetic of `ddim.sample`, in place."""
        encode, denoise, decode = (self._specs[graph] for graph in ("encode", "denoise", "decode"))
        condition = self._staged(encode.outputs[0], sizes.conditions)
        z, zc, t, eps = (self._staged(t, sizes.samples) for t in (*denoise.inputs, *denoise.outputs))
        sdg = self._staged(decode.outputs[0], sizes.samples)
        # Neither kernels nor work that is being recorded may allocate.
        scratch = sdg.array.copy() if self._blend.share else None
        given = csdg.array[:1] if sizes.shared else csdg.array
        bind = self._executor.bind
        run_encode = bind("encode", {"csdg": csdg.array, "zc": condition.array})
        run_denoise = bind("denoise", {"z": z.array, "zc": zc.array, "t": t.array, "eps": eps.array})
        run_decode = bind("decode", {"z": z.array, "sdg": sdg.array})

        def work() -> None:
            latent, noise = z.array, eps.array
            run_encode()
            zc.array[...] = condition.array[:1] if sizes.shared else condition.array
            for level, (a, b) in steps:
                t.array.fill(level)
                run_denoise()
                latent *= np.float32(a)
                noise *= np.float32(b)
                latent += noise
            run_decode()
            self._blend.into(sdg.array, given, scratch)

        return z, sdg, work

    def _recorded(self, work: Work) -> Work:
        return self._memory.record(work) if self._executor.recordable else work

    def _staged(self, tensor: TensorSpec, rows: int) -> Staged:
        return self._memory.staged((rows, *(int(side) for side in tensor.shape[1:])), tensor.dtype)

    def _plan(self, key: object, make: "Callable[[], _Plan]") -> "_Plan":
        if key not in self._plans:
            while len(self._plans) >= _MOST_PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[key] = make()
        return self._plans[key]


class _Plan:
    """Work on fixed buffers: fill those it reads, do it, fetch those it writes."""

    def __init__(self, memory: Memory, reads: dict[str, Staged], writes: dict[str, Staged], work: Work) -> None:
        self._memory, self._reads, self._writes, self._work = memory, reads, writes, work

    def run(self, given: Arrays, rows: int) -> Arrays:
        """The first `rows` rows of what is written; missing input rows repeat the last one."""
        for name, staged in self._reads.items():
            array = given[name]
            staged.host[: len(array)] = array
            staged.host[len(array) :] = array[-1]
            self._memory.push(staged)
        self._work()
        for staged in self._writes.values():
            self._memory.pull(staged)
        self._memory.wait()
        return {name: staged.host[:rows].copy() for name, staged in self._writes.items()}


@dataclass(frozen=True)
class _Sizes:
    """Rows of the conditions and of the samples, and whether all samples share the first condition."""

    conditions: int
    samples: int
    shared: bool
