"""A left ventricle whose every measure is known: a tube with a round end, cut flat, and a right ventricle beside it."""

from dataclasses import dataclass

import numpy as np
from runtime.shells import AXIS, FRAME, world_points

from m2s_runtime.grid import GRID
from m2s_runtime.placement import canonicalise
from m2s_runtime.result import Reconstruction
from m2s_runtime.surface import extract_surface

SEPTUM_DEG = float(np.degrees(np.arctan2(*(FRAME[:, :2].T @ [1.0, 1.0, 0.0])[::-1])))
"""Angle of the septum in the frame of the heart: to the right and forward."""

HALF_ARC_DEG = 55.0
"""The right ventricle touches the wall this far to either side of the middle of the septum."""

ANTERIOR_DEG = SEPTUM_DEG - HALF_ARC_DEG
"""The anterior insertion: base to apex is the third axis of a right-handed frame, so anterior is clockwise."""


@dataclass(frozen=True)
class Tube:
    """A wall of thickness `wall` + `swing` cos(angle - `thick_deg`) about a cavity `radius` wide; the base at `base` mm
    along the axis, lower by `tilt` mm for each mm towards angle 0."""

    radius: float = 22.0
    length: float = 60.0
    wall: float = 9.0
    swing: float = 0.0
    thick_deg: float = 0.0
    tilt: float = 0.0
    base: float = 0.0
    origin: tuple[float, float, float] = (15.0, -20.0, 35.0)

    def local(self, points: np.ndarray) -> np.ndarray:
        return np.moveaxis((points - np.array(self.origin)) @ FRAME, -1, 0)

    def signed_distance(self, points: np.ndarray) -> np.ndarray:
        x, y, h = self.local(points)
        across, beyond = np.hypot(x, y), np.maximum(h - self.length, 0)
        reach = np.hypot(across, beyond)
        swing = self.swing * np.cos(np.arctan2(y, x) - np.radians(self.thick_deg)) * across / np.maximum(reach, 1e-9)
        base = (self.base + self.tilt * x - h) / np.hypot(1, self.tilt)
        return np.maximum.reduce([reach - self.radius - self.wall - swing, self.radius - reach, base])

    def labels(self, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """ACDC labels: 1 right ventricle, 2 wall, 3 cavity."""
        points = world_points(affine, shape)
        x, y, h = self.local(points)
        wall = self.signed_distance(points) < 0
        reach = np.hypot(np.hypot(x, y), np.maximum(h - self.length, 0))
        turned = (np.degrees(np.arctan2(y, x)) - SEPTUM_DEG + 180) % 360 - 180
        beside = (abs(turned) < HALF_ARC_DEG) & (reach < self.radius + self.wall + 25) & (h > 0) & (h < self.length)
        inside = (reach < self.radius) & (h > self.base + self.tilt * x)
        return np.where(wall, 2, np.where(inside, 3, np.where(beside & (reach > self.radius), 1, 0))).astype(np.uint8)

    @property
    def wall_ml(self) -> float:
        """Without a swing."""
        r, big = self.radius, self.radius + self.wall
        return np.pi * ((big**2 - r**2) * (self.length - self.base) + 2 / 3 * (big**3 - r**3)) / 1000

    @property
    def cavity_ml(self) -> float:
        return np.pi * self.radius**2 * (self.length - self.base + 2 / 3 * self.radius) / 1000

    @property
    def reach_mm(self) -> float:
        return self.length - self.base + self.radius + self.wall


def scan_of(tube: Tube, spacing=(1.4, 1.4, 8.0), shape=(120, 120, 15)) -> np.ndarray:
    """An affine with the tube in the middle of its volume, index axes along the frame of the heart."""
    affine = np.eye(4)
    affine[:3, :3] = FRAME * spacing
    middle = np.array(tube.origin) + AXIS * (tube.base + tube.length + tube.radius) / 2
    affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine, shape


def reconstructed(tube: Tube, labels: np.ndarray, affine: np.ndarray, *, right=True, flags=()):
    """The canonical stack of a label map, and the reconstruction that networks without fault would make of it."""
    canonical = canonicalise(labels == 2, affine, labels == 1 if right else None)
    world = canonical.placement.world()
    sdg = tube.signed_distance(world_points(world, GRID)).astype(np.float32)
    shifts = np.zeros((12, 2), np.float32)
    agreement = np.where(canonical.masks.any(axis=(0, 1)), 0.9, np.nan).astype(np.float32)
    mesh = extract_surface(sdg, world)
    return canonical, Reconstruction(mesh, shifts, np.zeros(2), sdg, sdg, world, flags, {}, None, agreement)
