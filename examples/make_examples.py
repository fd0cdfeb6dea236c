"""Makes the example stacks of this folder from procedural phantoms: `python examples/make_examples.py`.

Needs the extra `train`. The shapes are invented, so the files carry no patient and no foreign licence.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m2s.data.heart import Heart, keyed_rng, seat
from m2s.data.phantom import phantom, shell
from m2s.data.sdg import voxelise
from m2s.data.simulate import PAPER

CAVITY, WALL = 3, 2


def acquire(heart: Heart, spacing: tuple[float, float, float], slices: int, key: str) -> npt.NDArray[np.uint8]:
    """A stack as a scanner gives it: thick steps, every slice moved, wall 2 and cavity 3; base first."""
    side = int(128 / spacing[0])
    shifts = PAPER.draw(keyed_rng("example", key), slices)
    base = heart.vertices[:, 2].min()
    labels = np.zeros((side, side, slices), np.uint8)
    for k, (x, y) in enumerate(shifts):
        moved = heart.vertices + np.array([x, y, 0.5 * spacing[2] - base])
        plane = voxelise(moved, heart.faces, labels.shape, spacing)[:, :, k]
        labels[:, :, k] = WALL * plane + CAVITY * (ndimage.binary_fill_holes(plane) & ~plane)
    return labels


def beating(part: float) -> Heart:
    """A wall that contracts: `part` 0 at end-diastole, 1 at end-systole."""
    width, wall, length = 24 - 8 * part, 8 + 4 * part, 58 - 6 * part
    vertices, faces = shell(width, length, wall, -10.0)
    return seat("beating", vertices, faces, keyed_rng("beating"))


def oblique(spacing: tuple[float, float, float], degrees: float) -> npt.NDArray[np.float64]:
    """Voxel to world: turned about x, x running to the left as in most scanners' files."""
    a = np.deg2rad(degrees)
    turn = np.array([[-1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = (90.0, -110.0, 35.0)
    return affine


def save(name: str, labels: npt.NDArray[np.uint8], affine: npt.NDArray[np.float64]) -> None:
    """Writes `name` beside this file."""
    image = nib.Nifti1Image(labels, affine)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, Path(__file__).with_name(name))


def main() -> None:
    """A labelled stack, a bare wall mask in an oblique frame with the apex first, a beating cine of four frames."""
    spacing = (1.4, 1.4, 10.0)
    save("labelled.nii.gz", acquire(phantom(1), spacing, 11, "labelled"), np.diag([*spacing, 1.0]))
    spacing = (1.25, 1.25, 8.0)
    wall = (acquire(phantom(2), spacing, 14, "wall") == WALL).astype(np.uint8)
    save("wall_oblique.nii.gz", wall[:, :, ::-1], oblique(spacing, 35.0))
    spacing = (1.6, 1.6, 10.0)
    cine = [acquire(beating(part), spacing, 10, "cine") for part in (0.0, 0.5, 1.0, 0.5)]
    save("cine.nii.gz", np.stack(cine, -1), oblique(spacing, -20.0))


if __name__ == "__main__":
    main()
