"""The affine of a NIfTI header: which of its forms holds, and whether it can be believed."""

from typing import Final

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from m2s_runtime.errors import BadAffine

Affine = npt.NDArray[np.float64]

SPACING_MM: Final = (0.1, 30.0)
ORTHOGONAL_WITHIN: Final = 1e-3
"""Largest cosine of the angle between two axes."""

FARTHEST_MM: Final = 1e5
"""Largest believable offset from the scanner's origin; float32 vertices lose a tenth of a millimetre beyond 1e6."""

AGREE_WITHIN_MM: Final = 0.5
"""Two forms of the same affine are the same while no corner of the volume moves by more than this."""

UNIT_MM: Final = {1: 1000.0, 2: 1.0, 3: 1e-3}
"""NIfTI spatial unit code (metre, millimetre, micrometre) to millimetres; files that say nothing mean millimetres."""


@np.errstate(over="ignore", invalid="ignore")  # what overflows is refused, or warned of
def read_affine(header: Nifti1Header) -> tuple[Affine, tuple[str, ...]]:
    """The affine that voxel indices are mapped with: sform, else qform, else spacing alone.

    Returns:
        (4, 4) float64 voxel index to world mm (RAS), and warnings.

    Raises:
        BadAffine: not finite, not invertible, sheared by more than 1e-3, with voxels outside 0.1 .. 30 mm, or more
            than 100 m from the origin.
    """
    # By rows and not by a matrix: infinity times zero would be noise on stderr.
    scale = np.array([*[UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)] * 3, 1.0])[:, None]
    forms: dict[str, Affine] = {}
    if int(header["sform_code"]) > 0:
        forms["sform"] = scale * np.asarray(header.get_sform(), np.float64)
    if int(header["qform_code"]) > 0:
        forms["qform"] = scale * _qform(header, needed=not forms)
    if not forms:
        forms["pixdim"] = scale * np.asarray(header.get_base_affine(), np.float64)
    name, affine = next(iter(forms.items()))
    check_affine(affine, name)
    return affine, tuple(_warnings(forms, np.array(header["dim"][1:4], np.float64)))


def _qform(header: Nifti1Header, *, needed: bool) -> Affine:
    """The qform; one that is broken matters only if there is no sform."""
    try:
        return np.asarray(header.get_qform(), np.float64)
    except (HeaderDataError, ValueError) as error:
        if needed:
            raise BadAffine(f"qform unusable ({error}): write the orientation anew") from None
        return np.full((4, 4), np.nan)


def check_affine(affine: Affine, name: str) -> None:
    """Refuse what no scanner writes; `name` says in the message which affine it is.

    Raises:
        BadAffine: as of `read_affine`.
    """
    if not np.isfinite(affine).all():
        raise BadAffine(f"{name} holds NaN or infinity: write the orientation anew")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = SPACING_MM
    if not ((spacing >= low - 1e-6) & (spacing <= high + 1e-6)).all():
        found = " x ".join(f"{s:.4g}" for s in spacing)
        raise BadAffine(f"{name} gives voxels of {found} mm, believable are {low} to {high}: correct the spacing")
    farthest = float(abs(affine[:3, 3]).max())
    if farthest > FARTHEST_MM:
        raise BadAffine(f"{name} puts the volume {farthest:.3g} mm from the origin: correct its offsets")
    axes = affine[:3, :3] / spacing
    skew = float(abs(axes.T @ axes - np.eye(3)).max())
    if skew > ORTHOGONAL_WITHIN:
        raise BadAffine(f"{name} is sheared (cosine {skew:.3g} between two axes): resample to a rectangular grid")


def _warnings(forms: dict[str, Affine], shape: npt.NDArray[np.float64]) -> list[str]:
    if "pixdim" in forms:
        return ["neither sform nor qform is set: spacing is kept, position and orientation are unknown"]
    if len(forms) < 2:
        return []
    if not np.isfinite(forms["qform"]).all():
        return ["qform is unusable, sform is used"]
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*(shape - 1), 1]
    apart = float(np.linalg.norm(corners @ (forms["sform"] - forms["qform"]).T, axis=1).max())
    if apart <= AGREE_WITHIN_MM:
        return []
    told = "; ".join(f"{name} {np.round(a[:3], 3).tolist()}" for name, a in forms.items())
    return [f"sform and qform disagree by up to {apart:.1f} mm, sform is used ({told})"]
