"""Reading label volumes (NIfTI-1 and -2, single files or pairs, plain or gzip) that may be broken or hostile.

The header is judged before any voxel is decompressed, and no more bytes are read than it declares. Only the two files
of a pair go by their names; otherwise what a file is called does not matter, only what it holds.
"""

import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header

from m2s_runtime import gzip_stream
from m2s_runtime.errors import BadLabels, CaseError, UnreadableVolume
from m2s_runtime.frames import frame_ms
from m2s_runtime.gzip_stream import GzipStream
from m2s_runtime.limits import Limits
from m2s_runtime.nifti_files import digest, header_of, open_regular, voxels_of
from m2s_runtime.nifti_header import Stream, read_header, scaled_type, shape_of, skip_of
from m2s_runtime.orientation import read_affine

Values = npt.NDArray[np.integer[Any] | np.floating[Any]]
LabelArray = npt.NDArray[np.uint8 | np.int16]

MAX_TRAILING_BYTES: Final = 2**20
"""Bytes after the last voxel that are read to reach the checksum; with more than these it is not compared."""

BLOCK_VOXELS: Final = 2**19
"""Voxels converted at a time: however large the volume, only its labels are held whole."""

INTEGRAL_WITHIN: Final = 1e-3
LARGEST_LABEL: Final = 2**15 - 1


@dataclass(frozen=True)
class Study:
    """One label volume, read whole.

    Attributes:
        labels: (X, Y, Z, T) uint8, or int16 where a label is over 255, as stored.
        affine: (4, 4) float64, voxel index to world mm (RAS).
        path: where it was read; of a pair its header.
        sha256: hexadecimal digest of the file's bytes, see `nifti_files.digest_of`.
        warnings: what is odd about the file yet no reason to refuse it.
        frame_ms: time from frame to frame; None where there is a single one or the header does not tell.
    """

    labels: LabelArray
    affine: npt.NDArray[np.float64]
    path: Path
    sha256: str
    warnings: tuple[str, ...]
    frame_ms: float | None = None


def read_study(path: Path, limits: Limits = Limits()) -> Study:  # noqa: B008 - frozen
    """Read a NIfTI label map, 3-D, 4-D or with trailing axes of length one; of a pair either file may be named.

    Raises:
        UnreadableVolume: no regular file, no permission, not NIfTI, half a pair, or truncated.
        BadHeader: dimensions that are negative, zero, over the limits or of the wrong number.
        BadAffine: see `orientation.read_affine`.
        BadLabels: voxel values that are not whole numbers from 0 to 32767.
    """
    path = header_of(Path(path))
    names = path.name
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(open_regular(path, limits))]
            stream = _decompressed(files[0])
            header, single = read_header(stream)
            shape = shape_of(header, limits)
            affine, warnings = read_affine(header)
            if not single:
                voxels = _second_half(path)
                names = f"{path.name} + {voxels.name}"
                files.append(stack.enter_context(open_regular(voxels, limits)))
                stream = _decompressed(files[1])
            labels = _read_labels(stream, header, shape, limits, skip=skip_of(header, single=single))
            sha256 = digest(files)
    except CaseError as error:
        raise type(error)(f"{names}: {error}") from None
    except PermissionError:
        raise UnreadableVolume(f"{names}: not readable by this user: check the permissions") from None
    except (EOFError, zlib.error) as error:
        raise UnreadableVolume(f"{names}: damaged or cut short ({error}): copy it again") from None
    except OSError as error:
        raise UnreadableVolume(f"{names}: cannot be read ({error.strerror or error}): copy it again") from None
    time_step = frame_ms(float(header["pixdim"][4]), int(header["xyzt_units"])) if shape[3] > 1 else None
    return Study(labels, affine, path, sha256, warnings, time_step)


def _decompressed(file: BufferedReader) -> Stream:
    return GzipStream(file) if file.peek(2).startswith(gzip_stream.MAGIC) else file


def _second_half(header: Path) -> Path:
    voxels = voxels_of(header)
    if voxels is None:
        raise UnreadableVolume(
            "is only the header of a .hdr/.img pair: put both side by side under one name, or convert them to .nii.gz"
        )
    return voxels


def _read_labels(
    stream: Stream, header: Nifti1Header, shape: tuple[int, int, int, int], limits: Limits, *, skip: int
) -> LabelArray:
    count = int(np.prod(shape))
    # Memory that is never written to is never taken, so a file cut short costs no more than it holds.
    labels: LabelArray = np.zeros(count, np.uint8)
    stream.read(skip)
    start = 0
    for block in _blocks(stream, header, count):
        found = as_labels(block)
        if labels.dtype == np.uint8 and found.max() > np.iinfo(np.uint8).max:
            labels = _wider(labels, start, limits)
        if found.any():
            labels[start : start + len(found)] = found
        start += len(found)
    # A gzip stream compares its checksum where it ends; look for the end, but not for ever.
    stream.read(MAX_TRAILING_BYTES)
    return labels.reshape(shape, order="F")


def _wider(labels: LabelArray, filled: int, limits: Limits) -> LabelArray:
    """Room for labels over 255."""
    if 2 * len(labels) > limits.voxels:
        raise BadLabels(
            f"holds labels over 255, of which {limits.voxels // 2} voxels at most fit the limit: number them from 1,"
            f" or add --max-voxels {2 * len(labels)}"
        )
    wide = np.zeros(len(labels), np.int16)
    wide[:filled] = labels[:filled]
    return wide


def _blocks(stream: Stream, header: Nifti1Header, count: int) -> Iterator[Values]:
    """Yield `count` voxel values as they are stored, first axis fastest, scaled as the header says, piece by piece."""
    dtype, scaling = scaled_type(header)
    for start in range(0, count, BLOCK_VOXELS):
        size = min(BLOCK_VOXELS, count - start) * dtype.itemsize
        raw = stream.read(size)
        if len(raw) < size:
            raise UnreadableVolume("cut short, fewer voxels than its header declares: copy it again")
        values = np.frombuffer(raw, dtype)
        if scaling:
            with np.errstate(all="ignore"):  # what overflows is no label, and refused as such
                values = values * scaling[0] + scaling[1]
        yield values


def as_labels(values: Values) -> npt.NDArray[np.uint8 | np.int16]:
    """Values of any real type as labels, in the same order.

    Raises:
        BadLabels: they are not whole numbers from 0 to 32767.
    """
    if values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise BadLabels("holds NaN or infinity: set these voxels to the background's 0")
        whole = np.round(values)
        if not (abs(values - whole) <= INTEGRAL_WITHIN).all():
            raise BadLabels(
                "holds values that are not whole numbers: give a label map, resampled with nearest neighbour"
                " and stored without scaling (scl_slope)"
            )
        values = whole
    low, high = values.min(), values.max()
    if low < 0 or high > LARGEST_LABEL:
        raise BadLabels(f"holds values from {low} to {high}: labels run from 0 to {LARGEST_LABEL}; is this an image?")
    return values.astype(np.int16)
