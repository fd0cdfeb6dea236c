"""From masks to points: contours of a stack at sub-pixel, points on the true surface, and the frame both are put in.

Everything is in mm of the grid's own frame at the nominal slice step. A stack of another step is treated as if it had
that one, in training and in use, as in the methods that read voxels; the answer is stretched back.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

from m2s.baselines.method import mask_surface
from m2s.data.heart import keyed_rng
from m2s.train.loop import Arrays, Source
from m2s.triangles import sample_surface
from m2s_runtime.errors import EmptyWall
from m2s_runtime.grid import PADDING, SPACING, UPSAMPLING
from m2s_runtime.slices import wall_slices

BoolArray = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]
Cloud = npt.NDArray[np.float32]

SCALE_MM: Final = 64.0
"""What coordinates are divided by: the folding grid of PCN is made for a unit box."""

TRUTH_POINTS: Final = 16384
"""Points on the true surface, as PCN takes them."""


_EDGE: Final = 1.5
"""Pixels over which the edge of the wall is smoothed to tell its direction."""
_NEAREST: Final = 8
_REACH_MM: Final = 3.0
"""Along z: what of a cloud counts as a slice of it."""
_ENOUGH: Final = 50
"""Points of a cloud that tell where a slice of it lies."""


@dataclass(frozen=True)
class Frame:
    """The frame that the network sees: mm less the centroid of the input, divided by `SCALE_MM`.

    What all slices have moved by moves the centroid and not the truth, so the network has to undo that part too.
    """

    centroid: Points

    def into(self, points: Points) -> Cloud:
        """(..., 3) mm to the network's units."""
        return ((points - self.centroid) / SCALE_MM).astype(np.float32)

    def back(self, cloud: Cloud) -> Points:
        """(..., 3) of the network to mm."""
        return cloud.astype(np.float64) * SCALE_MM + self.centroid


def wall_contours(slices: BoolArray) -> Points:
    """Endocardial and epicardial contours of every wall slice, by marching squares at 0.5 (scikit-image).

    Args:
        slices: (128, 128, 12) wall.

    Returns:
        (N, 3) mm, the vertices of all contours; slice k lies in plane 5k + 2 of the sixty.

    Raises:
        EmptyWall: no slice holds wall.
    """
    from skimage.measure import find_contours

    found: list[Points] = []
    for k in np.flatnonzero(wall_slices(slices)):
        z = (UPSAMPLING * int(k) + UPSAMPLING // 2 + PADDING) * SPACING[2]
        lines = find_contours(np.pad(slices[:, :, k], 1).astype(np.float32), 0.5)
        # With the border all contours close: the last vertex is the first one again.
        found += [np.column_stack([line[:-1] - 1, np.full(len(line) - 1, z)]) for line in lines]
    if not found:
        raise EmptyWall("no slice holds wall, so there is no contour to complete: check the mask")
    return np.concatenate(found)


def outward(slices: BoolArray, contours: Points, points: Points) -> Points:
    """Which way leads out of the wall near each point: (N, 3), the mean over the eight nearest vertices of contours.

    In-plane and as the stack has it, for nothing else tells the two sides of a cloud apart. The points lie where the
    heart is thought to be, the contours where their slices had moved to, by as much as the wall is thick: each slice's
    first go to the middle of the points about its plane.

    Args:
        slices: (128, 128, 12) wall.
        contours: (M, 3) mm, its `wall_contours`.
        points: (N, 3) mm, in the same frame.
    """
    wall, at = slices.astype(np.float32), contours / SPACING - (0, 0, PADDING + UPSAMPLING // 2)
    at[:, 2] /= UPSAMPLING
    smooth = ndimage.gaussian_filter(wall, (_EDGE, _EDGE, 0))
    along = [np.asarray(ndimage.map_coordinates(np.gradient(smooth, axis=a), at.T, order=1)) for a in (0, 1)]
    out = -np.stack([*along, np.zeros(len(at))], axis=1)
    out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)
    nearest = KDTree(_following(points, contours)).query(points, min(_NEAREST, len(out)))[1]
    return out[nearest.reshape(len(points), -1)].mean(axis=1)


def _following(points: Points, contours: Points) -> Points:
    """Contours moved in-plane, slice by slice, to where a cloud of points has the slice."""
    moved = contours.copy()
    for z in np.unique(contours[:, 2]):
        here, near = contours[:, 2] == z, points[abs(points[:, 2] - z) <= _REACH_MM]
        if len(near) >= _ENOUGH:
            moved[here, :2] += _middle(near) - _middle(contours[here])
    return moved


def _middle(points: Points) -> Points:
    """(2,) mm: of the box that all but the outermost hundredths of points lie in."""
    return np.percentile(points[:, :2], (1, 99), axis=0).mean(axis=0)


def resample(points: Points, count: int, rng: np.random.Generator) -> Points:
    """`count` of the (N, 3) points, drawn with replacement."""
    return points[rng.integers(len(points), size=count)]


def truth_points(mask: BoolArray, rng: np.random.Generator, count: int = TRUTH_POINTS) -> Points:
    """Points strewn evenly over the surface of a (128, 128, 60) mask, marching cubes at 0.5: (count, 3) mm.

    Of simulated hearts signed distances are known too, of real pairs only masks: masks serve both.
    """
    return sample_surface(mask_surface(np.pad(mask, ((0, 0), (0, 0), (PADDING, PADDING)))), count, rng)


def sample_of(slices: BoolArray, mask: BoolArray, points: int, rng: np.random.Generator) -> tuple[Arrays, Frame]:
    """What the network sees of a stack, `points` (P, 3), and its `truth` (16384, 3), in the frame of the stack."""
    contours = wall_contours(slices)
    frame = Frame(contours.mean(axis=0))
    seen, true = resample(contours, points, rng), truth_points(mask, rng)
    return {"points": frame.into(seen), "truth": frame.into(true)}, frame


class CloudSource:
    """The stacks that every method is trained on, as clouds of points."""

    def __init__(self, stacks: Source, points: int, seed: int) -> None:
        self._stacks, self._points, self._seed = stacks, points, seed

    def batch(self, step: int, size: int) -> Arrays:
        """`points` (B, P, 3) and `truth` (B, 16384, 3), float32."""
        rng = keyed_rng("cardiac-pcn", self._seed, step)
        stacks = self._stacks.batch(step, size)
        pairs = zip(stacks["slices"][:, 0] > 0, stacks["mask"][:, 0], strict=True)
        samples = [sample_of(slices, mask, self._points, rng)[0] for slices, mask in pairs]
        return {name: np.stack([s[name] for s in samples]) for name in ("points", "truth")}
