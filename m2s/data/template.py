"""A left ventricle's wall as a template mesh: one set of triangles for every heart, of nearly one size.

The surface is that of revolution about z of one profile: from the endocardial apex to the rim, straight across the
wall, and back along the epicardium. Rings of the profile hold as many points as their circumference asks for and are
stitched to their neighbours, so that triangles do not shrink towards the apex as those of meridians do.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from m2s.data.wall_mesh import signed_volume

Floats = npt.NDArray[np.float64]
Faces = npt.NDArray[np.int32]

WIDTH_MM: Final = 22.0
LENGTH_MM: Final = 58.0
BASE_MM: Final = -14.0
WALL_MM: Final = 9.0
"""Half-axes of the cavity in-plane and along z, height of the cut below their centre, and thickness: a normal heart."""

EDGE_MM: Final = 2.2
"""Length of an edge: about 5,600 vertices."""

_FEWEST = 6
_FINE = 400


@dataclass(frozen=True)
class Template:
    """Points of the wall by their place in it, so that one mesh serves every thickness.

    Attributes:
        depth: (V,) 0 on the endocardium, 1 on the epicardium.
        along: (V,) 0 at the apex, 1 at the rim.
        around: (V,) radians about the long axis.
        faces: (F, 3) int32, outward winding; closed, in one piece, genus 0.
    """

    depth: Floats
    along: Floats
    around: Floats
    faces: Faces

    def vertices(self, wall_mm: float = WALL_MM) -> Floats:
        """(V, 3) mm: base at low z and level, apex at high z, long axis on x = y = 0."""
        radius, height = _profile(self.depth, self.along, wall_mm)
        return np.stack([radius * np.cos(self.around), radius * np.sin(self.around), height], axis=1)


def make_template(edge_mm: float = EDGE_MM) -> Template:
    """The template with edges of about `edge_mm` at its own size."""
    depth, along = _stations(edge_mm)
    radius, _ = _profile(depth, along, WALL_MM)
    count = np.maximum(np.round(2 * np.pi * radius / edge_mm).astype(int), _FEWEST)
    count[[0, -1]] = 1  # the two apices
    start = np.cumsum(count) - count
    rings = [_Ring(int(n), int(s), k % 2 / 2) for k, (n, s) in enumerate(zip(count, start, strict=True))]
    faces = np.concatenate([_stitch(a, b) for a, b in pairwise(rings)]).astype(np.int32)
    around = 2 * np.pi * np.concatenate([(np.arange(r.count) + r.turn) / r.count for r in rings])
    template = Template(np.repeat(depth, count), np.repeat(along, count), around, faces)
    if signed_volume(template.vertices(), faces) > 0:
        return template
    return replace(template, faces=np.ascontiguousarray(faces[:, ::-1]))


@dataclass(frozen=True)
class _Ring:
    """Points about the axis: how many, the number of the first, and its place as a part of the step between two.

    Every second ring is turned by half a step, so that its points lie between those of its neighbours.
    """

    count: int
    start: int
    turn: float


def _stitch(one: _Ring, other: _Ring) -> npt.NDArray[np.int64]:
    """The band of triangles between two rings, (n + m, 3) or, at an apex, (m, 3).

    Walks once around, over the middles of all edges in order of their angle: each edge makes a triangle with the point
    of the other ring that the walk has reached there.
    """
    edges = [np.arange(r.count if r.count > 1 else 0) for r in (one, other)]
    middle = [(e + 0.5 + r.turn) / r.count for e, r in zip(edges, (one, other), strict=True)]
    order = np.argsort(np.concatenate(middle), kind="stable")
    of_one = order < len(edges[0])
    at_one, at_other = np.cumsum(of_one) - of_one, np.cumsum(~of_one) - ~of_one
    here = one.start + at_one % one.count
    there = other.start + at_other % other.count
    forward = np.where(of_one, one.start + (at_one + 1) % one.count, other.start + (at_other + 1) % other.count)
    # On either ring the triangle keeps `here` and `there` and takes the walk's next point between them.
    return np.stack([here, forward, there], axis=1)


def _stations(edge_mm: float) -> tuple[Floats, Floats]:
    """`depth` and `along` (N,) of the rings, evenly spaced on each of the three parts of the profile."""
    steps = np.linspace(0, 1, _FINE)
    parts = [(0 * steps, steps), (steps, 0 * steps + 1), (0 * steps + 1, 1 - steps)]
    chosen: list[Floats] = []
    for depth, along in parts:
        points = np.stack(_profile(depth, along, WALL_MM), axis=1)
        length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        # Rows of equilateral triangles are closer than their edges are long.
        count = round(length[-1] / (edge_mm * np.sqrt(3) / 2))
        wanted = np.linspace(0, length[-1], count + 1)[0 if not chosen else 1 :]
        chosen.append(np.stack([np.interp(wanted, length, depth), np.interp(wanted, length, along)]))
    depth, along = np.concatenate(chosen, axis=1)
    return depth, along


def _profile(depth: Floats, along: Floats, wall_mm: float) -> tuple[Floats, Floats]:
    """Distance from the axis and height, mm."""
    width, length = WIDTH_MM + depth * wall_mm, LENGTH_MM + depth * wall_mm
    polar = along * np.arccos(BASE_MM / length)
    return width * np.sin(polar), length * np.cos(polar)
