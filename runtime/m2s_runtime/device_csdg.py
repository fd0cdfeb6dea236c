"""The C-SDG on a device: from the super-resolved wall to signed distances without the host in between.

The kernels (`device_csdg.cu`) measure the distance to the very surface that `csdg.coarse_sdg` takes and are exact up to
single precision, below 2e-5 mm on the canonical grid. They are plain C, so the tests run the same text on the CPU; with
fused multiply-adds off, a GPU has no freedom to find other bits. No card has run them yet, so `DeviceCsdg.agrees` is
asked of each before its distances are used.
"""

import functools
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from m2s_runtime import grid
from m2s_runtime.csdg import plane_weights
from m2s_runtime.errors import EngineError
from m2s_runtime.mesh_distance import grid_distance, vertex_distance
from m2s_runtime.surface import contour

Launch = Callable[..., None]
"""Enqueues a kernel: its name, how many threads it needs at least, then its arguments (arrays of the device, ints)."""

KERNEL: Final[Literal["device"]] = "device"
"""What runs are recorded with, beside the `mesh_distance.KERNEL` of those that measure on the host."""

_KERNELS: Final = ("resample", "mark_tiles", "mark_blocks", "seed_bricks", "measure")
_CODES: Final = 256
_MOST: Final = 9
"""Triangles in a cell at most, `MOST` in the kernels."""

_TABLE: Final = np.dtype([
    ("count", np.int32, _CODES),
    ("extent", np.float32, (_CODES, 6)),
    ("triangle", np.float32, (_CODES, _MOST, 20)),
])  # fmt: skip
"""`Table` in the kernels."""

_EXACT_MM: Final = 1e-4
_VERTEX_MM: Final = 0.3
"""How far the nearest vertex lies beyond the surface at most."""

_TRIAL: Final = (24, 15, 14)
"""Voxels of a grid that has room for every configuration and takes no time."""


class Device(Protocol):
    """What is asked of `m2s_runtime.engines.resident.Memory`."""

    def compiled(self, source: str) -> Launch:
        """Kernels of this text, which says `KERNEL`, `DEVICE` and `THREAD` for what differs between devices."""
        ...

    def held(self, array: npt.NDArray[Any]) -> Any:  # noqa: ANN401 - an array of the device, as below
        """A copy on the device."""
        ...

    def fetched(self, array: Any) -> npt.NDArray[Any]:  # noqa: ANN401
        """A copy on the host, once everything enqueued is done."""
        ...

    def scratch(self, size: int) -> Any:  # noqa: ANN401
        """So many bytes on the device, with anything in them."""
        ...


class DeviceCsdg:
    """The kernels on one device, for one grid; made and used inside the scope of the device."""

    def __init__(self, device: Device, shape: tuple[int, int, int] = grid.GRID, planes: int = grid.PLANES) -> None:
        """Compile them; a grid other than the canonical one is for tests.

        Raises:
            EngineError: the device cannot, or understands them otherwise.
        """
        self._device, self._launch = device, device.compiled(source(shape, planes))
        sizes = device.held(np.zeros(2 + len(_KERNELS), np.int32))
        self._launch("sizes", 1, sizes)
        self._heart, table, *threads = (int(size) for size in device.fetched(sizes))
        if table != _TABLE.itemsize:
            raise EngineError(f"the device lays out the kernels' table in {table} bytes, not {_TABLE.itemsize}")
        self._threads: dict[str, int] = dict(zip(_KERNELS, threads, strict=True))
        self._table = device.held(cell_table().view(np.uint8))

    def bind(
        self, probability: Any, below: Any, weights: Any, walls: Any, csdg: Any, states: Any  # noqa: ANN401
    ) -> Callable[[], None]:  # fmt: skip
        """A call that enqueues the work on these very arrays of the device, contiguous, of as many rows as hearts.

        Args:
            probability: (N, 128, 128, 60) float32, what the graph `sr` returns.
            below: (N, 64) int32, with `weights` from `plane_pairs`.
            weights: (N, 64, 2) float32.
            walls: (N, 128, 128, 64) float32, written: what `csdg.to_grid` makes of `probability`.
            csdg: (N, 128, 128, 64) float32 mm, written: what `csdg.coarse_sdg` makes of `walls >= 0.5`; 0 if empty.
            states: (N, 2) int32, written: 1 where there is any wall; 1 where `probability` is not finite.
        """
        rows = len(below)
        hearts = self._device.scratch(rows * self._heart)

        def enqueue() -> None:
            states.fill(0)
            self._start("resample", rows, probability, below, weights, walls, hearts, states)
            self._start("mark_tiles", rows, hearts, self._table)
            self._start("mark_blocks", rows, hearts)
            self._start("seed_bricks", rows, hearts, self._table)
            self._start("measure", rows, hearts, self._table, csdg)

        return enqueue

    def _start(self, kernel: str, rows: int, *arguments: Any) -> None:  # noqa: ANN401
        self._launch(kernel, rows * self._threads[kernel], rows, *arguments)


def agrees(device: Device) -> bool:
    """Whether the kernels find on this device what the host finds, within 1e-4 mm, on random voxels of a small grid.

    Where the host itself knows the distance to the nearest vertex only, within 0.3 mm below that.
    """
    mask = trial()
    kernels = DeviceCsdg(device, _TRIAL, _TRIAL[2])
    probability, below, pairs = map(device.held, (mask.astype(np.float32), *same_planes(_TRIAL[2])))
    walls, csdg = (device.held(np.zeros(_TRIAL, np.float32)) for _ in range(2))
    kernels.bind(probability, below, pairs, walls, csdg, device.held(np.zeros((1, 2), np.int32)))()
    vertices, faces = contour(mask.astype(np.float32), mask, 0.5, 0.0, "lewiner")
    try:
        wanted, slack = grid_distance(vertices * grid.SPACING, faces, _TRIAL, grid.SPACING), _EXACT_MM
    except EngineError:
        wanted, slack = vertex_distance(vertices, _TRIAL, grid.SPACING), _VERTEX_MM
    found = device.fetched(csdg)
    nearer = wanted - np.abs(found)
    return bool(((found < 0) == mask).all() and nearer.min() > -_EXACT_MM and nearer.max() < slack)


def trial() -> npt.NDArray[np.bool_]:
    """(24, 15, 14) voxels, dense at one end and sparse at the other, with all 256 configurations of a cell."""
    density = np.linspace(0.7, 0, _TRIAL[0])[:, None, None]
    return np.asarray(np.random.default_rng(0).random(_TRIAL) < density)


def plane_pairs(steps_mm: Sequence[float]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """`csdg.plane_weights` as the kernels take them: (N, 64) lower ones of two neighbours, (N, 64, 2) weights."""
    below: list[npt.NDArray[np.intp]] = []
    pairs: list[npt.NDArray[np.float32]] = []
    for weights in map(plane_weights, steps_mm):
        first = np.minimum((weights > 0).argmax(axis=0), len(weights) - 2)
        at = np.arange(weights.shape[1])
        below.append(first)
        pairs.append(np.stack([weights[first, at], weights[first + 1, at]], axis=1))
    return np.array(below, np.int32), np.array(pairs, np.float32)


def same_planes(planes: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The same, of one heart, where the network's planes are the grid's."""
    last = np.arange(planes) == planes - 1
    weights = np.stack([~last, last], axis=1)[None].astype(np.float32)
    return (np.arange(planes) - last).astype(np.int32)[None], weights


def source(shape: tuple[int, int, int], planes: int) -> str:
    """The kernels with their numbers, as `Device.compiled` takes them."""
    sizes = dict(zip(("X", "Y", "Z", "PLANES"), (*shape, planes), strict=True))
    lengths = dict(zip(("SX", "SY", "SZ"), (f"{side:.1f}f" for side in grid.SPACING), strict=True))
    defined = [f"#define {name} {value}\n" for name, value in {**sizes, **lengths}.items()]
    return "".join(defined) + (resources.files("m2s_runtime") / "device_csdg.cu").read_text()


@functools.cache
def cell_table() -> npt.NDArray[np.void]:
    """Triangles of the 256 configurations of a cell, (1,) of `Table`.

    They are what scikit-image makes of eight voxels. Values of a mask tie in every test of Lewiner's for ambiguous
    cells, so all cells of one configuration hold the same triangles, whatever lies around them; the tests see to that.
    """
    from skimage.measure import marching_cubes  # slow to import

    table = np.zeros(1, _TABLE)
    for code in range(1, _CODES - 1):
        corners = (code >> np.arange(8) & 1).astype(np.float32).reshape(2, 2, 2)
        vertices, faces, _, _ = marching_cubes(corners, 0.5, method="lewiner")
        vertices = np.rint(2 * vertices) / 2 * grid.SPACING
        table["count"][0, code] = len(faces)
        table["extent"][0, code] = *vertices.min(axis=0), *vertices.max(axis=0)
        for number, triangle in enumerate(vertices[faces]):
            table["triangle"][0, code, number] = _constants(triangle)
    return table


def _constants(triangle: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(20,) of a (3, 3) triangle in mm: a corner, two edges and the unit normal; their products; reciprocals."""
    # At the largest angle the two edges are the best conditioned frame of the triangle.
    opposite = [np.linalg.norm(triangle[(c + 2) % 3] - triangle[(c + 1) % 3]) for c in range(3)]
    a, b, c = np.roll(triangle, -int(np.argmax(opposite)), axis=0)
    u, v, w = b - a, c - a, c - b
    normal = np.cross(u, v)
    unit, reciprocals = normal / np.linalg.norm(normal), [1 / (p @ p) for p in (u, v, w, normal)]
    return np.array([*a, *u, *v, *unit, u @ u, u @ v, v @ v, *reciprocals, 0])
