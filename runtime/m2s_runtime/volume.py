"""Reading label volumes (NIfTI-1 and -2, plain or gzip) that may be broken or hostile.

The header is judged before any voxel is decompressed, and no more bytes are read than it declares. What the file
is called does not matter, only what it holds.
"""

import gzip
import hashlib
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from m2s_runtime.errors import BadHeader, BadLabels, CaseError, UnreadableVolume
from m2s_runtime.orientation import read_affine

Stream = BufferedReader | gzip.GzipFile
Frame = npt.NDArray[np.integer | np.floating]
LabelArray = npt.NDArray[np.uint8 | np.int16]

MAX_VOXELS: Final = 64 * 2**20
"""Voxels over all frames; 50 frames of 256 x 256 x 20 fit."""

MAX_AXIS: Final = 1024
MAX_FRAMES: Final = 100
MAX_FILE_BYTES: Final = 2 * 2**30
MAX_HEADER_BYTES: Final = 2**20
"""Bytes before the first voxel, extensions included."""

MAX_TRAILING_BYTES: Final = 2**20
"""Bytes after the last voxel that are read to reach the checksum; with more than these it is not compared."""

INTEGRAL_WITHIN: Final = 1e-3
LARGEST_LABEL: Final = 2**15 - 1


@dataclass(frozen=True)
class Study:
    """One label volume, read whole.

    Attributes:
        labels: (X, Y, Z, T) uint8 or int16, as stored.
        affine: (4, 4) float64, voxel index to world mm (RAS).
        path: where it was read.
        sha256: hexadecimal digest of the file's bytes.
        warnings: what is odd about the file yet no reason to refuse it.
    """

    labels: LabelArray
    affine: npt.NDArray[np.float64]
    path: Path
    sha256: str
    warnings: tuple[str, ...]


def read_study(path: Path) -> Study:
    """Read a NIfTI label map, 3-D, 4-D or with trailing axes of length one.

    Raises:
        UnreadableVolume: no regular file, no permission, not NIfTI, or truncated.
        BadHeader: dimensions that are negative, zero, too large or of the wrong number.
        BadAffine: see `orientation.read_affine`.
        BadLabels: voxel values that are not whole numbers from 0 to 32767.
    """
    path = Path(path)
    try:
        with _open_regular(path) as file:
            stream = gzip.GzipFile(fileobj=file) if file.peek(2).startswith(b"\x1f\x8b") else file
            header = _read_header(stream)
            shape = _shape(header)
            affine, warnings = read_affine(header)
            labels = _read_labels(stream, header, shape)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except CaseError as error:
        raise type(error)(f"{path.name}: {error}") from None
    except PermissionError:
        raise UnreadableVolume(f"{path.name}: not readable by this user: check the permissions") from None
    except (EOFError, zlib.error) as error:
        raise UnreadableVolume(f"{path.name}: damaged or cut short ({error}): copy it again") from None
    except OSError as error:
        raise UnreadableVolume(f"{path.name}: cannot be read ({error.strerror or error}): copy it again") from None
    return Study(labels, affine, path, digest, warnings)


def _open_regular(path: Path) -> BufferedReader:
    """Open a regular file; a pipe or device would block for ever, so it is looked at before it is opened."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UnreadableVolume("no such file") from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableVolume("not a regular file: give the .nii or .nii.gz file itself")
    if status.st_size > MAX_FILE_BYTES:
        raise UnreadableVolume(f"{status.st_size / 2**30:.1f} GiB on disk, too much for a label map: store it as uint8")
    return path.open("rb")


def _read_header(stream: Stream) -> Nifti1Header:
    start = stream.read(540)
    kinds = {348: Nifti1Header, 540: Nifti2Header}
    sizes = [int.from_bytes(start[:4], order, signed=True) for order in ("little", "big")]
    kind = next((kinds[size] for size in sizes if size in kinds), None)
    if kind is None or len(start) < kind.template_dtype.itemsize:
        raise UnreadableVolume("not a NIfTI file: convert it to .nii.gz")
    order = "<" if sizes[0] in kinds else ">"
    header = kind(start[: kind.template_dtype.itemsize], order, check=False)
    magic = bytes(header["magic"].item())
    if not magic.startswith(b"n+"):
        raise UnreadableVolume("not a single-file NIfTI (Analyze or .hdr/.img pair): convert it to .nii.gz")
    return header


def _shape(header: Nifti1Header) -> tuple[int, int, int, int]:
    """The declared (X, Y, Z, T), within the limits."""
    dim = [int(d) for d in header["dim"]]
    if not 3 <= dim[0] <= 7:
        raise BadHeader(f"{dim[0]} dimensions declared: 3 (x, y, z) or 4 (x, y, z, time) are needed")
    sizes = dim[1 : dim[0] + 1] + [1] * (4 - dim[0])
    declared = " x ".join(map(str, sizes))
    if min(sizes) < 1:
        raise BadHeader(f"impossible size {declared}: write the file anew with its true size")
    if max(sizes[4:], default=1) > 1:
        raise BadHeader(f"size {declared} has more than four axes: store one volume, or one cine (x, y, z, time)")
    if max(sizes[:3]) > MAX_AXIS or sizes[3] > MAX_FRAMES or np.prod(sizes, dtype=np.float64) > MAX_VOXELS:
        raise BadHeader(
            f"size {declared} is over the limits ({MAX_AXIS} voxels an axis, {MAX_FRAMES} frames,"
            f" {MAX_VOXELS // 2**20} Mi voxels in all): crop it round the heart, or split the frames"
        )
    return sizes[0], sizes[1], sizes[2], sizes[3]


def _read_labels(stream: Stream, header: Nifti1Header, shape: tuple[int, int, int, int]) -> LabelArray:
    frames = [_as_labels(values) for values in _read_frames(stream, header, shape)]
    # A gzip stream compares its checksum where it ends; look for the end, but not for ever.
    stream.read(MAX_TRAILING_BYTES)
    small = all(frame.max() <= np.iinfo(np.uint8).max for frame in frames)
    if small:
        return np.stack([frame.astype(np.uint8) for frame in frames], axis=3)
    return np.stack(frames, axis=3)


def _read_frames(stream: Stream, header: Nifti1Header, shape: tuple[int, int, int, int]) -> Iterator[Frame]:
    """Yield (X, Y, Z) frames, scaled as the header says, one at a time: a float64 cine would not fit twice."""
    try:
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
    except KeyError:
        raise BadHeader(f"unknown data type {int(header['datatype'])}: write the file anew as uint8") from None
    except HeaderDataError as error:
        raise BadHeader(f"{error}: write the file anew as uint8") from None
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise BadLabels(f"voxels of type {dtype} are no labels: write the file anew as uint8")
    offset = float(header["vox_offset"])
    if not header.template_dtype.itemsize <= offset <= MAX_HEADER_BYTES:
        raise BadHeader(f"voxels said to start at byte {offset:g}: write the file anew")
    stream.seek(int(offset))
    size = int(np.prod(shape[:3])) * dtype.itemsize
    for _ in range(shape[3]):
        raw = stream.read(size)
        if len(raw) < size:
            raise UnreadableVolume("cut short, fewer voxels than its header declares: copy it again")
        values = np.frombuffer(raw, dtype).reshape(shape[:3], order="F")
        if slope is None or intercept is None or (slope, intercept) == (1, 0):
            yield values
        else:
            yield values * slope + intercept


def _as_labels(values: Frame) -> npt.NDArray[np.int16]:
    """(X, Y, Z) values of any real type as labels; int16 holds them all."""
    if values.dtype.kind == "f":
        whole = np.round(values)
        # Not `>`: NaN and infinity must fail this test too.
        with np.errstate(invalid="ignore"):
            whole_enough = (abs(values - whole) <= INTEGRAL_WITHIN).all()
        if not whole_enough:
            raise BadLabels(
                "holds values that are not whole numbers: give a label map, resampled with nearest neighbour"
                " and stored without scaling (scl_slope)"
            )
        values = whole
    low, high = values.min(), values.max()
    if low < 0 or high > LARGEST_LABEL:
        raise BadLabels(f"holds values from {low} to {high}: labels run from 0 to {LARGEST_LABEL}; is this an image?")
    return values.astype(np.int16)
