"""Left-ventricular walls as meshes: from endo- and epicardial points on meridians to one smooth, closed surface.

A *sheet* is (M, R, 3) points in mm: M meridians around the long axis, R rings from the one next to the apex (index 0)
to the base; the apex itself comes apart, (3,). M is even, so that every meridian goes on through the apex.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline

Floats = npt.NDArray[np.float64]
Faces = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Sheet:
    """One surface of the wall: `points` (M, R, 3) and `apex` (3,), mm."""

    points: Floats
    apex: Floats


class Refinement:
    """Interpolates sheets by cubic splines, periodic around and straight through the apex, to a finer grid.

    Both directions are linear in the points, so the two small matrices are made once.
    """

    def __init__(self, meridians: int, rings: int, factors: tuple[int, int]) -> None:
        """Set up for sheets of one shape; `factors` are those around the axis and along the meridians."""
        around = np.arange(meridians + 1)
        periodic = CubicSpline(around, np.eye(meridians)[around % meridians], bc_type="periodic")
        self._around: Floats = periodic(np.arange(meridians * factors[0]) / factors[0])
        through = CubicSpline(np.arange(-rings, rings + 1), np.eye(2 * rings + 1))
        self._along: Floats = through(np.arange(rings * factors[1] + 1) / factors[1])

    def __call__(self, sheet: Sheet) -> Sheet:
        """Refine: (M, R, 3) to (M * factors[0], R * factors[1], 3); the points given are among the result."""
        points = np.einsum("am,mrc->arc", self._around, sheet.points)
        opposite = np.roll(points, len(points) // 2, axis=0)
        apex = np.broadcast_to(sheet.apex, (len(points), 1, 3))
        meridian = np.concatenate([opposite[:, ::-1], apex, points], axis=1)
        fine = np.einsum("sr,mrc->msc", self._along, meridian)
        return Sheet(np.ascontiguousarray(fine[:, 1:]), sheet.apex)


def at_least(endo: Sheet, epi: Sheet, least_mm: float, soft_mm: float = 1.0) -> Sheet:
    """Push the epicardium outward where the wall is thinner than `least_mm`, or inside out.

    Args:
        endo: inner sheet.
        epi: outer sheet, point for point opposite `endo`.
        least_mm: thickness to keep along the normal of the endocardium.
        soft_mm: width of the transition; where the wall has just the least thickness half of this is added.

    Returns:
        The moved epicardium.
    """
    normal = _normals(endo)
    pole = normal[:, 0].mean(axis=0)
    pole /= np.linalg.norm(pole)

    def missing(wall: Floats, along: Floats) -> Floats:
        thickness = (wall * along).sum(axis=-1, keepdims=True)
        excess = thickness - least_mm
        return (least_mm + (excess + np.sqrt(excess**2 + soft_mm**2)) / 2 - thickness) * along

    return Sheet(epi.points + missing(epi.points - endo.points, normal), epi.apex + missing(epi.apex - endo.apex, pole))


def square_rim(endo: Sheet, epi: Sheet, rings: int = 10) -> Sheet:
    """Slide the epicardium along the wall until its rim lies square across from the endocardium's.

    Where the two rims lie at different heights the annulus between them would run nearly along the wall and leave a
    feather edge. The slide fades out over `rings` rings.
    """
    along = endo.points[:, -1] - endo.points[:, -2]
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    slide = ((epi.points[:, -1] - endo.points[:, -1]) * along).sum(axis=-1, keepdims=True) * along
    ramp = np.clip(1 - np.arange(epi.points.shape[1])[::-1] / rings, 0, 1)
    fade = ramp**2 * (3 - 2 * ramp)
    return Sheet(epi.points - fade[None, :, None] * slide[:, None], epi.apex)


def closed_wall(endo: Sheet, epi: Sheet) -> tuple[Floats, Faces]:
    """Join both sheets by an annulus at the base: (V, 3) vertices and (F, 3) faces, closed, outward winding."""
    meridians, rings = endo.points.shape[:2]
    sheet = sheet_faces(meridians, rings)
    count = meridians * rings + 1
    rim = np.arange(meridians) * rings + rings - 1
    after = np.roll(rim, -1)
    annulus = np.concatenate(
        [np.stack([after, rim, rim + count], axis=1), np.stack([after + count, after, rim + count], axis=1)]
    )
    vertices = np.concatenate([endo.points.reshape(-1, 3), endo.apex[None], epi.points.reshape(-1, 3), epi.apex[None]])
    faces = np.concatenate([sheet[:, ::-1], sheet + count, annulus]).astype(np.int32)
    return vertices, faces if signed_volume(vertices, faces) > 0 else faces[:, ::-1]


def sheet_faces(meridians: int, rings: int) -> Faces:
    """(F, 3) triangles of one sheet: point (m, r) is number m * rings + r, the apex the last."""
    m, r = np.meshgrid(np.arange(meridians), np.arange(rings - 1), indexing="ij")
    following = (m + 1) % meridians
    here, beside = m * rings + r, following * rings + r
    quads = [np.stack([here, beside, here + 1], -1), np.stack([beside, beside + 1, here + 1], -1)]
    first = np.arange(meridians) * rings
    fan = np.stack([np.full(meridians, meridians * rings), np.roll(first, -1), first], -1)
    return np.concatenate([*(q.reshape(-1, 3) for q in quads), fan]).astype(np.int32)


def warp(vertices: Floats, rms_mm: float, rng: np.random.Generator, *, waves: int = 6) -> Floats:
    """Move vertices by a smooth random field of `rms_mm` a component: plane waves 60 to 160 mm long."""
    direction = rng.standard_normal((waves, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wave_vector = 2 * np.pi * direction / rng.uniform(60.0, 160.0, (waves, 1))
    phase = rng.uniform(0, 2 * np.pi, waves)
    amplitude = rng.standard_normal((waves, 3))
    amplitude *= rms_mm * np.sqrt(2 * 3 / (amplitude**2).sum())
    return vertices + np.sin(vertices @ wave_vector.T + phase) @ amplitude


def cut(vertices: Floats, faces: Faces, normal: Floats, offset_mm: float) -> tuple[Floats, Faces]:
    """Keep the side of the plane `normal . p = offset_mm` that `normal` points to, closed flat where it was cut."""
    from manifold3d import Manifold, Mesh64  # pyright: ignore[reportMissingImports]  (ships no types)

    solid = Manifold(Mesh64(vertices, faces.astype(np.uint64)))
    result = solid.trim_by_plane((float(normal[0]), float(normal[1]), float(normal[2])), offset_mm).to_mesh64()
    return np.asarray(result.vert_properties, np.float64)[:, :3], np.asarray(result.tri_verts).astype(np.int32)


def signed_volume(vertices: Floats, faces: Faces) -> float:
    """Volume in mm³ of a closed mesh, positive for outward winding (divergence theorem)."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def _normals(sheet: Sheet) -> Floats:
    """(M, R, 3) unit normals of a sheet, away from its long axis."""
    around = np.roll(sheet.points, -1, axis=0) - np.roll(sheet.points, 1, axis=0)
    apex = np.broadcast_to(sheet.apex, (len(sheet.points), 1, 3))
    along = np.gradient(np.concatenate([apex, sheet.points], axis=1), axis=1)[:, 1:]
    normal = np.cross(around, along)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    outward = ((sheet.points - sheet.points.mean(axis=(0, 1))) * normal).sum()
    return normal if outward > 0 else -normal
