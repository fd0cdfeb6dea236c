"""Label maps as a Python program hands them over: a file, a nibabel image, or an array with its affine."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Union

import numpy as np
import numpy.typing as npt

from m2s_runtime.errors import BadAffine, BadHeader, BadLabels, UnreadableVolume, UsageProblem
from m2s_runtime.limits import Limits
from m2s_runtime.nifti_files import digest_of, header_of
from m2s_runtime.orientation import check_affine, read_affine
from m2s_runtime.volume import LabelArray, as_labels, read_study

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

Mask = Union[npt.ArrayLike, str, "os.PathLike[str]", "SpatialImage"]
"""What `Reconstructor.run` takes."""

_KEY: Final = re.compile(r"[0-9a-f]{64}")
_ARRAY: Final = "the mask"


@dataclass(frozen=True)
class Given:
    """A label map, whichever way it came.

    Attributes:
        labels: (X, Y, Z, T) uint8 or int16.
        affine: (4, 4) float64, voxel index to world mm (RAS).
        key: sha256 (hex) that the noise is drawn by.
        name: of the file; `the mask` for what came without one.
        warnings: what is odd about it yet no reason to refuse it.
    """

    labels: LabelArray
    affine: npt.NDArray[np.float64]
    key: str
    name: str
    warnings: tuple[str, ...] = ()

    def check_single(self) -> None:
        """Refuse a cine where a single stack is wanted.

        Raises:
            BadHeader: there are several frames.
        """
        count = self.labels.shape[3]
        if count > 1:
            raise BadHeader(f"{self.name} has {count} frames: give one, mask[..., t], or take Reconstructor.cine")


def given(mask: Mask, affine: npt.ArrayLike | None, key: str | None, limits: Limits) -> Given:
    """Read or check what was handed over.

    Raises:
        UsageProblem: an array without affine, an affine beside a file or image, or a key that is none.
        UnreadableVolume, BadHeader, BadAffine, BadLabels: as of `volume.read_study`.
    """
    if key is not None and not _KEY.fullmatch(str(key)):
        raise UsageProblem(f"key={key!r}: give 64 hexadecimal digits in lower case, such as file_key(path) returns")
    if isinstance(mask, str | os.PathLike):
        _refuse(affine, "a file")
        return _from_file(Path(mask), key, limits)
    image: Any = mask
    if hasattr(image, "dataobj"):
        _refuse(affine, "an image")
        placed, warnings = _affine_of(image)
        return _from_array(np.asanyarray(image.dataobj), placed, key, warnings)
    if affine is None:
        raise UsageProblem("an array says nothing of where it lies: give affine=, voxel index to world mm (RAS)")
    if np.ma.is_masked(mask):
        raise BadLabels("the mask is a masked array: give mask.filled(0)")
    try:
        values = np.asanyarray(mask)
    except ValueError as error:
        raise BadLabels(f"the mask is no array ({error})") from error
    return _from_array(values, _checked(affine), key)


def file_key(path: str | os.PathLike[str]) -> str:
    """The key that `m2s-run` draws the noise of a file by: sha256 (hex) of its bytes, of a pair those of both files.

    Raises:
        UnreadableVolume: it cannot be read.
    """
    key = digest_of(header_of(Path(path)))
    if key is None:
        raise UnreadableVolume(f"{Path(path).name}: cannot be read: check name and permissions")
    return key


def array_key(labels: LabelArray) -> str:
    """Sha256 (hex) of shape and labels, whatever type and memory order held them.

    The affine does not count: a heart that is moved in the scanner keeps its noise, and so its shape.
    """
    total = hashlib.sha256(b"mask2surface labels 1\0")
    total.update(np.array(labels.shape, "<i8").tobytes())
    total.update(labels.astype("<i2").tobytes(order="C"))
    return total.hexdigest()


def _from_file(path: Path, key: str | None, limits: Limits) -> Given:
    study = read_study(path, limits)
    return Given(study.labels, study.affine, key or study.sha256, path.name, study.warnings)


def _from_array(
    values: npt.NDArray[Any], affine: npt.NDArray[np.float64], key: str | None, warnings: tuple[str, ...] = ()
) -> Given:
    if values.dtype.kind not in "biuf":
        raise BadLabels(f"the mask is an array of {values.dtype}: give whole numbers or booleans")
    try:
        labels = as_labels(_four_axes(values))
    except BadLabels as error:
        raise BadLabels(f"the mask {error}") from None
    return Given(labels, affine, key or array_key(labels), _ARRAY, warnings)


def _four_axes(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(X, Y, Z) as (X, Y, Z, 1); axes beyond time are dropped where they have length one."""
    if values.ndim < 3 or not values.size or any(length > 1 for length in values.shape[4:]):
        raise BadHeader(f"the mask has shape {values.shape}: give a stack of slices (X, Y, Z), or a cine (X, Y, Z, T)")
    return values.reshape(*values.shape[:3], -1)


def _affine_of(image: Any) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:  # noqa: ANN401 - any of nibabel's
    from nibabel.nifti1 import Nifti1Pair

    # The header of a NIfTI image knows units and both forms; `m2s-run` goes by it too.
    return read_affine(image.header) if isinstance(image, Nifti1Pair) else (_checked(image.affine), ())


def _checked(affine: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        matrix = np.array(affine)
        if matrix.dtype.kind in "cSU":  # an imaginary part would be dropped, text taken for numbers
            raise ValueError(f"{matrix.dtype}")
        matrix = matrix.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise BadAffine(f"affine holds no real numbers ({error}): give (4, 4) with last row 0, 0, 0, 1") from error
    if not np.isfinite(matrix).all():
        raise BadAffine("affine holds NaN or infinity: give voxel index to world mm")
    if matrix.shape != (4, 4) or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise BadAffine(f"affine of shape {matrix.shape}: give (4, 4) with last row 0, 0, 0, 1")
    check_affine(matrix, "affine")
    return matrix


def _refuse(affine: npt.ArrayLike | None, source: str) -> None:
    if affine is not None:
        raise UsageProblem(f"{source} brings its own affine: leave affine out, or give the voxels as an array")
