"""MC-Net of `compact` alone: slice shapes, moved in closed form; no images, so a step costs milliseconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from m2s.data.heart import keyed_rng
from m2s.data.shapes import Complexes, Doubles, SliceShapes, stored_shapes
from m2s.data.simulate import PAPER, Mixture, MotionLaw
from m2s.data.store import StoreSpec
from m2s.nets.motion import TrackMotionNet
from m2s.nets.presets import McsrSize
from m2s.nets.slice_moments import TURNS, slice_features
from m2s.train.loop import Arrays, Batch, Facts, Figures, device_of
from m2s.train.stretch import stretched
from m2s_runtime.grid import CENTRE, SLICES
from m2s_runtime.slices import centre_shifts

_STACKS_A_DRAW: Final = 8
_DRAWS: Final = 8
"""Motions of each selection heart."""
_PIXEL_MM: Final = 0.1
"""By how much sampling a moved contour moves its centroid."""


@dataclass(frozen=True)
class Wear:
    """What scans do to slices besides moving them; parts are shares of stacks.

    Attributes:
        no_apex: the last slice, or sometimes the last two, are missing.
        no_base: the first slice is missing.
        rolled: the stack sits one slice off the middle.
        blurred: moments and pool centroids carry noise, as contours of another hand do.
        open_ring: share of slices whose pool is not known.
    """

    no_apex: float = 0.15
    no_base: float = 0.05
    rolled: float = 0.05
    blurred: float = 0.25
    open_ring: float = 0.02


class ShapeSource:
    """Batches of moved slice shapes."""

    def __init__(self, folder: Path, spec: StoreSpec, seed: int, law: MotionLaw, wear: Wear) -> None:
        self._folder, self._spec, self._seed, self._law, self._wear = folder, spec, seed, law, wear
        self._shapes: SliceShapes | None = None

    def batch(self, step: int, size: int) -> Arrays:
        """`features` (B, 12, F), `wall` (B, 12, 2) mm, `pool` (B, 12, 3), `shifts` (B, 12, 2) mm, `held` (B, 12)."""
        if self._shapes is None:
            self._shapes = stored_shapes(self._folder, self._spec)
        rng = keyed_rng("motion", self._seed, step)
        shapes = stretched(_pick(self._shapes, rng.integers(len(self._shapes), size=size)), rng)
        shapes = turned(shapes, rng)
        return moved(worn(shapes, self._wear, rng), self._law, rng)


def turned(shapes: SliceShapes, rng: np.random.Generator) -> SliceShapes:
    """Each heart at another angle about z, half of them mirrored."""
    phase = np.exp(1j * rng.uniform(0, 2 * np.pi, len(shapes)))
    mirrored = rng.uniform(size=len(shapes)) < 0.5

    def turn(values: Complexes, power: npt.NDArray[np.intp] | int) -> Complexes:
        angle = phase.reshape(-1, *[1] * (values.ndim - 1))
        flip = mirrored.reshape(angle.shape)
        return np.asarray(np.where(flip, values.conj(), values) * angle**power, np.complex128)

    return SliceShapes(
        turn(shapes.wall, 1), turn(shapes.pool, 1), shapes.area, shapes.pool_area, turn(shapes.moments, np.array(TURNS))
    )


def worn(shapes: SliceShapes, wear: Wear, rng: np.random.Generator) -> SliceShapes:
    """Slices lost, stacks seated anew, contours blurred."""
    count = len(shapes)
    held = shapes.area > 0
    first, last = held.argmax(1), SLICES - 1 - held[:, ::-1].argmax(1)
    lost_end = np.where(rng.uniform(size=count) < wear.no_apex, rng.choice((1, 2), count, p=(0.75, 0.25)), 0)
    lost_start = (rng.uniform(size=count) < wear.no_base).astype(int)
    room = np.maximum(last - first + 1 - 5, 0)
    lost_end = np.minimum(lost_end, room)
    lost_start = np.minimum(lost_start, room - lost_end)
    index = np.arange(SLICES)
    kept = (index >= (first + lost_start)[:, None]) & (index <= (last - lost_end)[:, None])
    length = last - lost_end - first - lost_start + 1
    seat = (SLICES - length) // 2 + np.where(rng.uniform(size=count) < wear.rolled, rng.choice((-1, 1), count), 0)
    seat = np.clip(seat, 0, SLICES - length)
    source = (index[None] + (first + lost_start - seat)[:, None]) % SLICES
    noise = wear_noise(rng, shapes, wear)

    def settle(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        values = values * kept.reshape(*kept.shape, *[1] * (values.ndim - 2))
        return np.take_along_axis(values, source.reshape(*source.shape, *[1] * (values.ndim - 2)), 1)

    closed = (rng.uniform(size=held.shape) >= wear.open_ring) & (shapes.pool_area > 0)
    parts = (shapes.wall, (shapes.pool + noise[0]) * closed, shapes.area, shapes.pool_area * closed)
    return SliceShapes(*(settle(p) for p in (*parts, shapes.moments * (1 + noise[1]))))  # pyright: ignore[reportArgumentType]


def wear_noise(rng: np.random.Generator, shapes: SliceShapes, wear: Wear) -> tuple[Complexes, Complexes]:
    """Noise of the pool centroids in mm and of the moments, relative."""
    strength = np.where(rng.uniform(size=len(shapes)) < wear.blurred, rng.uniform(0, 1, len(shapes)), 0.0)
    pool, moments = (_normal(rng, a.shape) for a in (shapes.pool, shapes.moments))
    return 0.4 * strength[:, None] * pool, 0.04 * strength[:, None, None] * moments


def moved(shapes: SliceShapes, law: MotionLaw, rng: np.random.Generator) -> Arrays:
    """Moves every slice and lays out what the network sees and what it has to find."""
    held = shapes.area > 0
    # A draw of the law serves several stacks: they share its kind and spread, never its numbers.
    draws = [law.draw(rng, SLICES * _STACKS_A_DRAW) for _ in range(-(-len(shapes) // _STACKS_A_DRAW))]
    shifts = np.concatenate(draws).reshape(-1, SLICES, 2)[: len(shapes)] * held[..., None]
    jitter = _PIXEL_MM * _normal(rng, held.shape) * held
    wall = _vectors(shapes.wall + jitter) + shifts
    pool = np.concatenate([wall + _vectors(shapes.pool) + CENTRE, shapes.pool_area[..., None]], -1)
    pool[~held] = (CENTRE, CENTRE, 0.0)
    moments = np.stack([shapes.moments.real, shapes.moments.imag], -2)
    seen = [torch.from_numpy(a) for a in ((wall + CENTRE), shapes.area, pool, moments)]
    arrays = {"features": slice_features(*seen).numpy(), "wall": wall, "pool": pool, "shifts": shifts}
    return {name: a.astype(np.float32) for name, a in arrays.items()} | {"held": held}


class MotionStage:
    """Mean absolute shift error after centring."""

    name = "motion"
    monitor = "shift"

    def __init__(self, size: McsrSize, source: ShapeSource, selection: SliceShapes, facts: Facts) -> None:
        self.net = TrackMotionNet(size)
        self.model: nn.Module = self.net
        self.source, self.facts = source, facts
        first = source.batch(0, 4096)["features"]
        self.net.mean.copy_(torch.from_numpy(first.mean((0, 1))))
        self.net.deviation.copy_(torch.from_numpy(first.std((0, 1)) + 1e-6))
        many = _pick(selection, np.arange(_DRAWS * len(selection)) % len(selection))
        rng = keyed_rng("motion-selection")
        self._selection = {name: torch.from_numpy(a) for name, a in moved(many, PAPER, rng).items()}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:  # noqa: ARG002
        """Of one run of the perceptron: averaging over symmetries is for later."""
        return _error(batch, self.net.track(batch["features"])), {}

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        """Shift error of the symmetric network on the selection hearts under the published motion."""
        net: TrackMotionNet = model  # pyright: ignore[reportAssignmentType]
        batch = {name: t.to(device_of(net)) for name, t in self._selection.items()}
        return {"shift": float(_error(batch, net.expected(batch["features"])))}

    def metadata(self) -> Facts:
        """Preset and origin of the data."""
        return self.facts


def training_law() -> Mixture:
    """What MC-Net is trained on."""
    return Mixture(share=0.65, block=0.04)


def _error(batch: Batch, expected: Tensor) -> Tensor:
    """Mean |component| in mm over the slices that hold wall."""
    found = centre_shifts(batch["wall"] - expected.float(), batch["pool"])
    error = (found - centre_shifts(batch["shifts"], batch["pool"])).abs().mean(-1)
    return (error * batch["held"]).sum() / batch["held"].sum().clamp(min=1)


def _pick(shapes: SliceShapes, index: npt.NDArray[np.integer]) -> SliceShapes:
    return SliceShapes(*(a[index] for a in vars(shapes).values()))


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Complexes:
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def _vectors(values: Complexes) -> Doubles:
    return np.stack([values.real, values.imag], -1)
