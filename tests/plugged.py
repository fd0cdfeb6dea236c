"""Methods of somebody else's, for the tests of `--method package.module:Class`."""

import numpy as np

from m2s_runtime.surface import Mesh


class Repeats:
    """Every slice five times, as a bool mask."""

    def predict(self, mask, _spacing):
        return np.repeat(mask, 5, axis=2)


class Floats:
    """A mask of the wrong type."""

    def predict(self, mask, _spacing):
        return np.repeat(mask, 5, axis=2).astype(np.float32)


class Open:
    """A cube without its lid, in the middle of the grid; spoils what it is given."""

    def predict(self, mask, _spacing):
        mask[:] = False
        return Mesh(*open_cube())


class Raises:
    """Has a fault of its own."""

    def predict(self, mask, _spacing):
        return mask[999]


class Lists:
    """A mesh of lists."""

    def predict(self, _mask, _spacing):
        corners, faces = cube()
        return Mesh(corners.tolist(), faces.tolist())


class NeedsMore:
    """Cannot be made."""

    def __init__(self, weights):
        self.weights = weights


class Silent:
    """Does not predict."""


def cube():
    """A closed cube of 40 mm, outward winding."""
    corners = np.array([[x, y, z] for z in (44.0, 84.0) for y in (44.0, 84.0) for x in (44.0, 84.0)])
    faces = [
        *((0, 2, 1), (1, 2, 3), (4, 5, 6), (5, 7, 6), (0, 1, 4), (1, 5, 4)),
        *((2, 6, 3), (3, 6, 7), (0, 4, 2), (2, 4, 6), (1, 3, 5), (3, 7, 5)),
    ]
    return corners, np.array(faces, np.int32)


def open_cube():
    """The same without the two triangles of a side."""
    corners, faces = cube()
    return corners, faces[:-2]
