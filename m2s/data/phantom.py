"""Procedural hearts that need no data: half-open ellipsoid shells with smooth bumps."""

import numpy as np

from m2s.data.heart import Faces, Heart, Vertices, keyed_rng, seat
from m2s.data.wall_mesh import Sheet, closed_wall, warp
from m2s_runtime.grid import SPACING

_MERIDIANS = 72
_RINGS = 48


def phantom(seed: int, plane_mm: float = SPACING[2]) -> Heart:
    """A left-ventricular wall of plausible size, a pure function of the seed.

    Args:
        seed: any integer.
        plane_mm: distance between planes, mm.

    Returns:
        The heart: cavity 26 to 62 mm wide, wall 6 to 14 mm thick, 60 to 105 mm long, tilted by a few degrees.
    """
    rng = keyed_rng("phantom", seed)
    width, wall = rng.uniform(13.0, 31.0), rng.uniform(6.0, 14.0)
    length = rng.uniform(1.6, 2.2) * width + 10.0
    vertices, faces = shell(width, length, wall, -rng.uniform(0.2, 0.7) * width)
    vertices = warp(vertices, rng.uniform(0.0, 2.0), rng)
    vertices = vertices @ _rotation(rng.normal(0.0, 0.05, 2), rng.uniform(0, 2 * np.pi)).T
    return seat(f"phantom-{seed}-{plane_mm:g}", vertices, faces, rng, plane_mm=plane_mm)


def shell(width: float, length: float, wall: float, base: float) -> tuple[Vertices, Faces]:
    """The wall between two ellipsoids of revolution about z, cut flat at z = `base`; the apex points to high z.

    Args:
        width: in-plane half-axis of the cavity, mm.
        length: half-axis of the cavity along z, mm.
        wall: added to all half-axes for the outer surface, mm.
        base: height of the cut above the ellipsoids' centre, mm; above `-length`.

    Returns:
        (V, 3) vertices in mm, and (F, 3) faces, closed, outward winding.
    """
    around = 2 * np.pi * np.arange(_MERIDIANS)[:, None] / _MERIDIANS

    def ellipsoid(radius: float, height: float) -> Sheet:
        polar = np.arccos(base / height) * np.arange(1, _RINGS + 1)[None] / _RINGS
        x, y = radius * np.sin(polar) * np.cos(around), radius * np.sin(polar) * np.sin(around)
        z = np.broadcast_to(height * np.cos(polar), x.shape)
        return Sheet(np.stack([x, y, z], axis=-1), np.array([0.0, 0.0, height]))

    return closed_wall(ellipsoid(width, length), ellipsoid(width + wall, length + wall))


def _rotation(tilt: Vertices, turn: float) -> Vertices:
    """Rotation matrix from two small tilts (radians about x and y) and a turn about z."""
    (ca, cb), (sa, sb) = np.cos(tilt), np.sin(tilt)
    about_x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
